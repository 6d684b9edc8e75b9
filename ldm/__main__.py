"""`python -m ldm` is `ldm`."""

import sys

from ldm.cli.main import main

sys.exit(main())
