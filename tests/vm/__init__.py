"""buildd on a machine of its own: Debian 12 with systemd and cgroup v2, installed as README.md says, run by qemu.

    vm.run("systemctl restart buildd")      # exit status and output; fails the test unless it is 0
    vm.power_cut()                          # no warning, nothing is flushed
    vm.boot()                               # from the same disk
    vm.call("run.status", {"run": "1"})     # a request to the daemon in it

`image` makes the disk, `agent` speaks to the guest, `machine` boots it and cuts its power, `guest` is what tests want
of the daemon in it. `make vm-test` runs the tests. By hand, with this checkout as it is now (more in `__main__`):

    cd tests && ../.venv/bin/python -m vm run 'systemctl status buildd'
"""
