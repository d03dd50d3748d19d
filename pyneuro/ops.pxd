# ops.py is compiled as it stands; this file says that it may be.
