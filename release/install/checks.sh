# What the tests of the packages share. A script reads it first. A command that fails ends the script (bash -e), and the log
# shows which one (bash -x).

is() { [[ "$1" == "$2" ]] || fail "got '$1', want '$2'"; }
isnt() { [[ "$1" != "$2" ]] || fail "got '$1', want another"; }
gone() { for path; do [[ ! -e "$path" && ! -L "$path" ]] || fail "$path is still there"; done; }
fail() {
	echo "FAILED: $*"
	exit 1
}
# refuses is for a command that must fail: bash -e looks past one behind !.
refuses() { if "$@"; then fail "this succeeds: $*"; fi; }

# check_installed looks at what a package has brought. $1 is the file with the completions for zsh.
check_installed() {
	is "$(stat --format '%a %U %G' /usr/bin/webhook-agent)" "755 root root"
	is "$(stat --format '%a %U %G' /etc/quintago/webhook-agent.toml)" "640 root webhook-agent"
	is "$(stat --format '%a %U %G' /usr/lib/systemd/system/webhook-agent.service)" "644 root root"
	is "$(getent passwd webhook-agent | cut -d : -f 6,7)" /nonexistent:/usr/sbin/nologin
	is "$(webhook-agent --version | cut -d ' ' -f 2)" "$(cat /in/version)"
	[[ "$(ldd /usr/bin/webhook-agent 2>&1)" == *"not a dynamic executable"* ]] || fail "the binary is not static"

	is "$(man --warnings --local-file /usr/share/man/man1/webhook-agent*.1.gz 2>&1 >/dev/null)" ""
	local page # mandoc opens only the first one that is compressed
	for page in /usr/share/man/man1/webhook-agent*.1.gz; do is "$(mandoc -T lint -W error "$page")" ""; done
	man webhook-agent-deliveries-replay | grep -e --dry-run

	bash -n /usr/share/bash-completion/completions/webhook-agent
	zsh -n "$1"
	fish --no-execute /usr/share/fish/vendor_completions.d/webhook-agent.fish
	webhook-agent __complete endpoints "" | grep '^rotate-secret'

	# Nothing has started, and nothing will at the next boot.
	is "$(systemctl is-active webhook-agent || true)" inactive
	is "$(systemctl is-enabled webhook-agent || true)" disabled
}

# check_service runs the unit without secrets, with a secret in the environment, and with secrets as credentials. $1 is the binary
# that must run. $2 is the number of its user; if it is empty, systemd chooses one.
check_service() {
	systemd-analyze verify webhook-agent.service
	systemd-analyze security --threshold=14 webhook-agent.service | tail -n 1

	# The configuration asks for DATABASE_URL, and nobody has given it.
	systemctl start webhook-agent
	says 'database.url: the environment variable "DATABASE_URL" is not set'

	umask 077
	echo "DATABASE_URL=postgres://agent@127.0.0.1:1/app" >/etc/quintago/webhook-agent.env
	restart
	says "PostgreSQL at 127.0.0.1:1: cannot connect"

	sed -i 's|^url = "env:DATABASE_URL"|url = "file:/run/credentials/webhook-agent.service/database-url"|' /etc/quintago/webhook-agent.toml
	echo "postgres://agent@127.0.0.1:2/app" >/etc/quintago/database-url
	restart
	says "PostgreSQL at 127.0.0.1:2: cannot connect"

	sed -i '/^\[security\]/,/^keys/ s|^keys = .*|keys = ["file:/run/credentials/webhook-agent.service/key"]|' /etc/quintago/webhook-agent.toml
	restart
	says "security.keys: file /run/credentials/webhook-agent.service/key is empty"
	openssl rand -hex 32 | tee /in/key >/etc/quintago/key
	restart
	says "PostgreSQL at 127.0.0.1:2: cannot connect"

	is "$(systemctl is-active webhook-agent)" active
	local pid
	pid=$(systemctl show --property MainPID --value webhook-agent)
	is "$(readlink "/proc/$pid/exe")" "$1"
	is "$(stat --format %U "/proc/$pid")" webhook-agent
	if [[ -n "${2:-}" ]]; then is "$(stat --format %u "/proc/$pid")" "$2"; fi
}

# restart starts the agent anew, with an empty journal, so that says finds what it logs from now on.
restart() {
	systemctl stop webhook-agent
	journalctl --quiet --rotate
	journalctl --quiet --vacuum-time=1s
	systemctl start webhook-agent
}

# says waits until the journal of the agent has the text $1.
says() {
	local i
	for i in {1..100}; do
		if journalctl --unit webhook-agent --output cat | grep -F "$1" >/dev/null; then return; fi
		sleep 0.1
	done
	journalctl --unit webhook-agent --output cat | tail -n 20
	fail "the agent does not log: $1"
}
