#!/bin/bash
# Boots a machine for a test: systemd itself, with this system's files below it. What is written lies in memory and vanishes
# at the end, so nothing is ever installed here. As root: machine.sh SCRIPT OUT [FILE...] runs SCRIPT by bash on that machine, with
# the FILEs in /in. OUT gets the files log (what SCRIPT printed) and status (what it returned).
#
# The machine has its own processes, mounts, network and users. It sees neither the devices of this one nor its settings of the
# kernel. Its cgroups are below one of its own, which this script removes.
set -euo pipefail

if [[ "${1:-}" == --inside ]]; then
	shift
	top=$1 script=$2 out=$3
	shift 3
	mount --make-rprivate /
	mount -t tmpfs tmpfs "$top"
	mkdir "$top"/{upper,work,root}
	root=$top/root
	mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$root"
	mount -t proc proc "$root/proc"
	mount --bind "$root/proc/sys" "$root/proc/sys"
	mount -o remount,bind,ro "$root/proc/sys"
	mount -t sysfs -o ro sysfs "$root/sys"
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	mount -t tmpfs tmpfs "$root/run"
	mount -t tmpfs tmpfs "$root/tmp"
	mount -t tmpfs -o mode=755 tmpfs "$root/dev"
	for device in null zero full random urandom tty; do
		touch "$root/dev/$device"
		mount --bind "/dev/$device" "$root/dev/$device"
	done
	mkdir "$root"/dev/{pts,shm} "$root"/{in,out}
	mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
	ln -s pts/ptmx "$root/dev/ptmx"
	mount --bind "$out" "$root/out"
	cp "$script" "$root/in/script.sh"
	(($# == 0)) || cp "$@" "$root/in/"

	# It starts what the test starts, and nothing that this system would.
	rm -rf "$root"/{usr/lib,etc}/systemd/system/*.wants "$root/etc/fstab"
	cat >"$root/etc/systemd/system/test.service" <<-'UNIT'
		[Unit]
		DefaultDependencies=no
		Wants=systemd-journald.service
		After=systemd-journald.service
		SuccessAction=exit-force
		FailureAction=exit-force
		[Service]
		Type=oneshot
		WorkingDirectory=/in
		StandardOutput=file:/out/log
		StandardError=inherit
		ExecStart=/bin/bash -c 'bash -eux -o pipefail /in/script.sh; echo $? >/out/status'
	UNIT
	cd "$root"
	mkdir former
	pivot_root . former
	umount -l /former
	mount --make-rshared /
	exec env -i container=test PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=test.service
fi

cgroups=/sys/fs/cgroup
[[ -e $cgroups/cgroup.controllers ]] || cgroups=/sys/fs/cgroup/unified
own=$cgroups/webhook-agent-test-$$
top=$(mktemp -d)
mkdir "$own"
trap 'rmdir "$top"; find "$own" -depth -type d -exec rmdir {} +' EXIT
(
	echo "$BASHPID" >"$own/cgroup.procs"
	# All of the machine ends with its first process, and that one with unshare. unshare heeds no other signal.
	exec timeout --signal=KILL 3m unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --net bash "$0" --inside "$top" "$@"
)
