# What is yours to choose: copy this file to config.rb, keep the lines that you change, and leave out the others.
{
  # "virtualbox", "libvirt" or "docker"; nil takes the first of them that is installed.
  provider: nil,

  # Machines that run clients, beside the one that runs the server.
  clients: 2,

  # Cores and megabytes of memory of each machine. Virtual machines have 2 and 3072 where these are nil, and
  # containers (docker) all that this machine has.
  cpus: nil,
  memory: nil,

  # The machines' private network, and their addresses in it, the server's first; nil counts up from the tenth.
  # VirtualBox allows 192.168.56.0/21 and nothing else unless you tell it to.
  network: "192.168.56.0/24",
  addresses: nil,

  # The box of virtual machines: a Debian or Ubuntu with Python, by its name or as a file that ends in .box.
  # Where none is in reach, `.venv/bin/python -m tests.hosts box` makes one for libvirt and prints its path.
  box: "debian/bookworm64",

  # For libvirt: "kvm", or "qemu" where the processor's help is not to be had (20 to 40 times slower).
  # nil tries it out.
  driver: nil,

  # For docker: the machines' image, and what `docker run` is told beside it; nil means what vagrant/machine/ makes.
  image: nil,
  create_args: nil,

  # Variables of the inventory, for all machines, such as fl_client_count: see "The inventory" in docs/variables.md.
  variables: {},

  # Variables of the run that follows the deployment: see "A run" in docs/variables.md.
  run: {rounds: 5},
}
