#!/bin/sh
# Installs Debian packages without a question; must run as root. Used by .ci/run and by the demo (which embeds it), mostly
# for PostgreSQL's server programs: a system-wide server, which Debian's packages create and start otherwise, is not wanted.
set -eu
export DEBIAN_FRONTEND=noninteractive

if ! command -v apt-get >/dev/null; then
	echo "there is no apt-get here: install $* with the package manager of this system" >&2
	exit 1
fi

# A broken repository that has nothing to do with these packages must not stop us.
apt-get -qq update || echo "apt-get update failed: going on with the package lists there are" >&2

install() {
	apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
}

case " $* " in
*" postgresql "*)
	# The post-install script of the server package asks this configuration whether to create a cluster. The package with the
	# configuration comes first, so that our setting stands when the server is installed; it is taken back at the end.
	install postgresql-common
	setting=/etc/postgresql-common/createcluster.d/quintago-no-main-cluster.conf
	mkdir -p "${setting%/*}"
	trap 'rm -f "$setting"; rmdir "${setting%/*}" 2>/dev/null || true' EXIT
	echo "create_main_cluster = false" >"$setting"
	;;
esac
install "$@"
