BEGIN: bytes
NEGOTIATE_UNIX_FD: bytes

def make_auth_external() -> bytes: ...
