# Runs in the guest: as pycontain-tests.service in run.py's machine, where stdout is the second
# serial port and the exit code goes into a file; or as Vagrant's provisioner.
if grep -q pycontain.tests /proc/cmdline; then
    stty -F /dev/ttyS1 raw -echo
    exec >/dev/ttyS1 2>&1
fi
cd /opt/pycontain || exit 1
export PYCONTAIN_MUST_RUN=1 PYCONTAIN_IN_VM=1 PYTHONDONTWRITEBYTECODE=1 HOME=/root
export PATH="/opt/pycontain/site/bin:$PATH" PYTHONUNBUFFERED=1
[ -d /opt/pycontain/images ] && export PYCONTAIN_TEST_CACHE=/opt/pycontain/images
mkdir -p /run/results
grep -q pycontain.tests /proc/cmdline && modprobe -q 9p && mount -t 9p -o trans=virtio,version=9p2000.L results /run/results
modprobe -q overlay
echo "guest: $(uname -r), $(stat -f -c %T /sys/fs/cgroup) with $(cat /sys/fs/cgroup/cgroup.controllers), up $(cut -d. -f1 /proc/uptime) s"
sh /opt/pycontain/command
status=$?
echo "$status" >/run/results/status
sync
echo "guest: pytest ended with $status"
exit "$status"
