"""Helpers: services that exist for one machine, come before it, and go after it.

How the units hang together. All of it is the service manager's own: none of it needs this service to be alive.

- The *place*, a service whose process ends at once, has the runtime directory of the machine made and removed. Where
  that belongs to anybody but root it is a file system of its own, which bounds what can be put there.
- The *sockets* of a helper are one unit of its name, bound in that directory, passed by socket activation. The manager
  takes them away when nothing needs them any more (``StopWhenUnneeded=``): with the last end of the helper, but not
  while that is on its way to a restart. ``BindsTo=`` would, as "deactivating" is enough for it.
- A *helper* is started before the scope and stopped after it: a VMM that is told to stop needs its disk until it has
  stopped. It is bound to the scope (``BindsTo=``): whatever ends the machine ends the helper.
- The *barrier*, a service without a process, is ordered after all helpers and requires them. If one of them does not
  start, the barrier does not either, and its ``OnFailure=`` is
- the *stopper*, a service that conflicts with the scope: its start takes the start of the scope out of the queue,
  or ends the machine that runs.
- The *bond* of a helper whose policy is ``stopMachine``, a service that is active without a process, is needed by that
  helper alone, so that the manager stops it as it does the sockets, however the helper ended; and passes its own stop
  on to the scope (``PropagatesStopTo=``). It is started after the helper and the scope: a helper that does not start
  has not ended. Stopped by itself, without what depends on it, it lets go: then the helper may end alone.

The scope wants the helpers that come with it for as long as it runs. Whatever pulls the scope in again, such as the
start of another helper, which is bound to it, pulls in all of these helpers, even those that were removed. The manager
then drops every job that nothing asks for: the scope runs already, so its helpers' jobs go, unless two of them ask for
each other. That is why a bond that comes with the scope must not require its helper, which wants the bond.

So that a machine comes with all its helpers or not at all, whoever dies meanwhile.
"""
