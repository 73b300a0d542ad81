# The part of the C half of `signal` that the holder uses.

SIG_DFL: int
SIGINT: int
SIGPIPE: int
SIGXFSZ: int

def alarm(seconds: int, /) -> int: ...
def signal(signalnum: int, handler: int, /) -> object: ...
