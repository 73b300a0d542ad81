# A launcher of containers that is not systemd-nspawn: the first process of a container, which boots the host's own
# system there. It runs in namespaces of its own for all but control groups, and waits for a line from its launcher,
# which has registered it by then: the root of the control groups inside is the group that it is in.
#   sh -eu boot.sh ROOT EXPORTED
#     ROOT      an empty directory
#     EXPORTED  a directory of the host in which the container may have sockets
root=$1
exported=$2
if [ $# = 2 ]; then
    read -r _
    exec unshare --cgroup sh -eu "$0" "$@" registered
fi
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/root"
mount -t overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" overlay "$root/root"
cd "$root/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/host/unix-export
mount --bind "$exported" run/host/unix-export
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Devices of its own: the systemd inside changes their owners and modes.
while read -r device numbers; do
    # shellcheck disable=SC2086 # two numbers
    mknod -m 666 "dev/$device" c $numbers
done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
END
busybox pivot_root . mnt
umount -l mnt
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd \
    systemd.mask=systemd-machined.service systemd.mask=systemd-machined.socket systemd.mask=moored.socket \
    systemd.mask=libvirtd.service systemd.mask=libvirtd.socket systemd.mask=virtlogd.service \
    systemd.mask=ssh.service systemd.mask=ssh.socket systemd.mask=netavark-dhcp-proxy.socket
