"""Throw-away systems with a real systemd, for the tests and the demo.

mmdebstrap makes a Debian root once per suite, and the checkout is installed in a layer over it once per state of its
files; both are kept. Each sandbox boots them below an overlay of its own, and forgets everything at its end. All its
mounts are made in a private mount namespace, so killing the processes of a sandbox also removes its mounts, whatever
state it is in.

There are two kinds. `nspawn` is a container: quick, but it has only those cgroup controllers that the host can spare.
`uml` has a kernel of its own, an ordinary process of the host (user-mode Linux), with all controllers.

Runs as root on Debian, whether or not the host's PID 1 is systemd, and needs only the standard library.

`host` knows the host, `images` makes the roots and `layers` what is over them, `state` knows what is up; `preparing`
is what both kinds have in common, `nspawn` and `uml` are the kinds; `booting` and `inside` use them, and `command` is
the command line. `agent` and `init` run inside sandboxes of the kind uml.
"""
