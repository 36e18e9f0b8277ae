"""What is tested with the Python that makes these tests run, on one host: each verb once."""
