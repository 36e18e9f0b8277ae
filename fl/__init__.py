"""The training: models, data, partitions, local steps, and the Flower apps around them."""
