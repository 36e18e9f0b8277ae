# Reads config.rb, says what is wrong with it, and knows what follows from it: addresses, inventory, key, paths.
require "etc"
require "fileutils"
require "ipaddr"
require "json"
require "yaml"

module Coldframe
  ROOT = File.expand_path("..", __dir__)
  CONFIG = File.join(__dir__, "config.rb")
  PROVIDERS = {
    "virtualbox" => "install VirtualBox, so that VBoxManage is on your PATH",
    "libvirt" => "install libvirt and the plugin vagrant-libvirt (Debian: apt install vagrant-libvirt libvirt-daemon-system)",
    "docker" => "type make engine in #{ROOT}, and look that `docker version` shows a server for your user",
  }.freeze
  # Another name than that of `make up`, so that both can stand side by side.
  FEDERATION = "vagrant".freeze

  # A mistake of the user's, in one message. Vagrant shows errors of its own kind as they are.
  def self.fail_with(message)
    raise Class.new(Vagrant::Errors::VagrantError) { define_method(:error_message) { message } }
  end

  # One cluster: the defaults of config.example.rb, the user's config.rb, and what follows from both.
  class Settings
    attr_reader :provider

    def initialize(given = File.exist?(CONFIG) ? read(CONFIG) : {})
      defaults = read(File.join(__dir__, "config.example.rb"))
      unknown = given.keys - defaults.keys
      unless unknown.empty?
        mistake(unknown.first, "is no setting", "the settings are #{defaults.keys.join(", ")}")
      end
      @values = defaults.merge(given)
      check_numbers
      check_network
      check_variables
      check_box
      @provider = choose_provider
    end

    def [](name)
      @values.fetch(name)
    end

    # The names of the machines, the server's first, with their addresses.
    def machines
      @machines ||= ["server", *(1..self[:clients]).map { |k| "client#{k}" }].zip(addresses).to_h
    end

    # Docker wants the length of the prefix, virtual machines the mask itself.
    def netmask
      length = IPAddr.new(self[:network]).prefix
      provider == "docker" ? length : IPAddr.new("255.255.255.255").mask(length).to_s
    end

    def inventory_path
      File.join(dotfile, "coldframe", "inventory.yml")
    end

    # The key that containers are told of, made once. Vagrant looks for it as soon as it reads the Vagrantfile.
    def key
      @key ||= File.join(ENV["COLDFRAME_CACHE"] || File.join(Dir.home, ".cache", "coldframe"), "vagrant", "key").tap do |path|
        make_key(path) unless File.exist?(path)
      end
    end

    def public_key
      File.read("#{key}.pub").strip
    end

    def image
      @image ||= self[:image] || `#{File.join(__dir__, "machine", "name.sh")} container trixie`.strip
    end

    def create_args
      arguments = self[:create_args] || `#{File.join(__dir__, "machine", "arguments.sh")}`.split("\n")
      arguments += ["--cpus=#{self[:cpus]}"] if self[:cpus]
      arguments += ["--memory=#{self[:memory]}m"] if self[:memory]
      arguments + ["--label=coldframe.vagrant=#{__dir__}"]
    end

    # The box's name, and the file that it comes from, if it is one.
    def box
      file = box_file
      file ? ["coldframe/#{File.basename(file, ".box")}", "file://#{file}"] : [self[:box], nil]
    end

    # How libvirt runs virtual machines: with the processor's help where that is to be had.
    def driver
      @driver ||= self[:driver] || (system(File.join(__dir__, "kvm.sh")) ? "kvm" : "qemu")
    end

    # The inventory, which calls every machine by its address in the private network: that one stays.
    def inventory
      hosts = machines.to_h do |name, address|
        [name, {"ansible_host" => address, "fl_address" => address, "ansible_ssh_private_key_file" => key_of(name)}]
      end
      members = ->(names) { {"hosts" => names.to_h { |name| [name, {}] }} }
      {
        "fl_machines" => {
          "hosts" => hosts,
          "vars" => variables,
          "children" => {
            "fl_server" => members.call(["server"]),
            "fl_clients" => members.call(machines.keys.drop(1)),
            "fl_monitor" => members.call(["server"]),
          },
        },
      }
    end

    # Whatever the deployment needs on this side; the same again changes nothing.
    def prepare
      return if @prepared

      command("scripts/setup.sh")
      command(".venv/bin/python", "-m", "tests.hosts", "image") if provider == "docker" && !self[:image]
      FileUtils.mkdir_p(File.dirname(inventory_path))
      File.write(inventory_path, "# Made by vagrant/Vagrantfile.\n#{inventory.to_yaml.delete_prefix("---\n")}")
      @prepared = true
    end

    # Once the last machine is gone, so is what was kept for them here; results stay.
    def forget
      return unless Dir.glob(File.join(dotfile, "machines", "*", "*", "id")).empty?

      state = ENV["XDG_STATE_HOME"] || File.join(Dir.home, ".local", "state")
      FileUtils.rm_rf([File.dirname(inventory_path), File.join(state, "coldframe", variables["fl_federation"])])
    end

    private

    # Vagrant gives each virtual machine a key of its own.
    def key_of(name)
      provider == "docker" ? key : File.join(dotfile, "machines", name, provider, "private_key")
    end

    def dotfile
      ENV["VAGRANT_DOTFILE_PATH"] || File.join(__dir__, ".vagrant")
    end

    def read(path)
      values = eval(File.read(path), TOPLEVEL_BINDING.dup, path) # rubocop:disable Security/Eval
      return values if values.is_a?(Hash)

      Coldframe.fail_with("#{path} is no list of settings: type cp config.example.rb config.rb in #{__dir__}, and edit that")
    rescue SyntaxError, NameError => error
      Coldframe.fail_with("#{path} cannot be read (#{error.message.lines.first.strip}): compare it with config.example.rb")
    end

    def mistake(name, problem, remedy)
      Coldframe.fail_with("vagrant/config.rb: #{name} #{problem}: #{remedy}")
    end

    def check_numbers
      {clients: [1, nil], cpus: [1, 2], memory: [1024, 3072]}.each do |name, (least, default)|
        value = self[name]
        next if value.nil? && default
        next if value.is_a?(Integer) && value >= least

        mistake("#{name}: #{value.inspect}", "is no number from #{least} on", "write #{name}: #{default || 2}")
      end
    end

    def check_network
      network = IPAddr.new(self[:network].to_s)
      room = 2**(32 - network.prefix) - 11
      if self[:addresses].nil? && room < self[:clients] + 1
        mistake("network: #{self[:network]}", "has no room for #{self[:clients] + 1} machines", "write a larger one, or fewer clients")
      end
      if addresses.uniq.length != self[:clients] + 1
        mistake("addresses", "must be #{self[:clients] + 1} different ones, the server's and #{self[:clients]} of clients", "write as many, or none")
      end
      addresses.each { |address| check_address(address, network) }
    rescue IPAddr::Error
      mistake("network: #{self[:network].inspect}", "is no network", 'write it like network: "192.168.56.0/24"')
    end

    def check_address(address, network)
      ends = network.to_range
      inside = IPAddr.new(address)
      return if network.include?(inside) && ![ends.first, ends.first.succ, ends.last].include?(inside)

      mistake("addresses: #{address}", "is no machine's address in the private network #{self[:network]}",
              "write one from #{ends.first.succ.succ} to #{IPAddr.new(ends.last.to_i - 1, ends.last.family)}, or another network")
    rescue IPAddr::Error
      mistake("addresses: #{address.inspect}", "is no address", "write it like #{ends.first.succ.succ}")
    end

    def check_variables
      [:variables, :run].each do |name|
        mistake("#{name}: #{self[name].inspect}", "is no list of variables", "write #{name}: {} or like #{name}: {rounds: 5}") unless self[name].is_a?(Hash)
      end
      federation = variables["fl_federation"]
      return if federation.to_s.match?(/\A[a-z][a-z0-9_]{0,30}\z/)

      mistake("fl_federation: #{federation.inspect}", "is no name", 'write small letters, digits and underscores, at most 31, such as "vagrant"')
    end

    def check_box
      return if box_file.nil? || File.file?(box_file)

      mistake("box: #{self[:box]}", "is no file", "write the path that `.venv/bin/python -m tests.hosts box` prints, or a box's name")
    end

    def box_file
      File.expand_path(self[:box], __dir__) if self[:box].to_s.end_with?(".box")
    end

    def addresses
      @addresses ||= self[:addresses] || begin
        first = IPAddr.new(self[:network].to_s).to_range.first.to_i + 10
        (0..self[:clients]).map { |k| IPAddr.new(first + k, Socket::AF_INET).to_s }
      end
    end

    # The user's, as Ansible wants their names, and what every machine of Vagrant's needs.
    def variables
      given = JSON.parse(JSON.generate(self[:variables]))
      ssh = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
      {
        "ansible_user" => "vagrant",
        "ansible_ssh_common_args" => ssh,
        "ansible_python_interpreter" => "/usr/bin/python3",
        "fl_federation" => FEDERATION,
        **share_of_cores(given),
        **given,
      }
    end

    # Containers see all cores of this machine: what a client has by default is its share of them.
    def share_of_cores(given)
      return {} if provider != "docker" || given.key?("fl_client_list")

      clients = self[:clients] * given.fetch("fl_client_count", 1).to_i
      cores = self[:cpus] ? self[:cpus] * self[:clients] : Etc.nprocessors
      {"fl_client_cpu" => [1.0, 0.8 * cores / [clients, 1].max].min.floor(2)}
    end

    # As Vagrant does it: what was typed, the environment, what is there already, config.rb; else what is installed.
    def choose_provider
      typed = ARGV.each_cons(2).map { |option, value| value if option == "--provider" }.compact.first
      typed ||= ARGV.map { |argument| argument[/\A--provider=(.+)/, 1] }.compact.first
      existing = Dir.glob(File.join(dotfile, "machines", "*", "*", "id")).map { |path| File.basename(File.dirname(path)) }.first
      wanted = typed || existing || ENV["VAGRANT_DEFAULT_PROVIDER"] || self[:provider]
      wanted ||= PROVIDERS.keys.find { |name| installed?(name) && ready?(name) }
      remedies = PROVIDERS.map { |name, remedy| "\n  #{name}: #{remedy}" }.join
      Coldframe.fail_with("Vagrant has nothing to make machines with. One of these is enough:#{remedies}") if wanted.nil?
      mistake("provider: #{wanted.inspect}", "is none of ours", "write one of #{PROVIDERS.keys.join(", ")}") unless PROVIDERS.key?(wanted.to_s)
      mistake("provider: #{wanted}", "is not installed here", "#{PROVIDERS[wanted.to_s]}; or choose another provider") unless installed?(wanted.to_s)
      wanted.to_s
    end

    def installed?(name)
      found, = Vagrant.plugin("2").manager.providers[name.to_sym]
      !found.nil? && found.usable?(false)
    rescue Vagrant::Errors::VagrantError
      false
    end

    # Not ed25519, which Vagrant's own ssh client knows only with further gems.
    def make_key(path)
      FileUtils.mkdir_p(File.dirname(path), mode: 0o700)
      command("ssh-keygen", "-q", "-t", "rsa", "-b", "3072", "-m", "PEM", "-N", "", "-C", "coldframe", "-f", path)
    end

    # The plugin for libvirt says yes wherever it is installed, with or without a libvirt.
    def ready?(name)
      name != "libvirt" || !Dir.glob("/run/libvirt/{libvirt,virtqemud}-sock").empty?
    end

    def command(*words)
      return if system(*words, chdir: ROOT)

      Coldframe.fail_with("`#{words.first(4).join(" ")}` failed: mend what it says above, and type the same again")
    end
  end

  def self.settings
    @settings ||= Settings.new
  end
end
