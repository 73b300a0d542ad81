"""Parts of moored that are not there at each start: `app` imports each where it is wanted, as the first call waits."""
