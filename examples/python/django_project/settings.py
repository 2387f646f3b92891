"""The settings of the project; `LOCKS` says where its locks are kept."""

import os

SECRET_KEY = "for the example alone"
INSTALLED_APPS = ["jobs"]
USE_TZ = True
LOCKS = os.environ.get("LOCKS", "memory:")
