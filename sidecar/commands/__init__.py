"""What the commands do, a module each: it is loaded when its command runs, and loads only what that needs.

Faults of the user's are told in clear lines on standard error, never as tracebacks.
"""
