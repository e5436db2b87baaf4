import os
import sys

# Threads that wait by spinning starve one another on machines with few cores; the setting counts before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from .cli import main

sys.exit(main())
