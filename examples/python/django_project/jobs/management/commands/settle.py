"""A management command of which one at a time may run for each account."""

import argparse
import time
from typing import Any

import polylock
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Settles an account."""

    help = "Settles an account, unless that is being done already."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Takes the account, and for how long to be at it."""
        parser.add_argument("account", type=int)
        parser.add_argument("--seconds", type=float, default=0.1)

    def handle(self, *_: Any, account: int, seconds: float, **__: Any) -> None:
        """Does it under a lock."""
        with polylock.connect(settings.LOCKS) as locks:
            try:
                with locks.lock(f"settle:{account}", ttl=30, wait=0, label="settle") as lease:
                    time.sleep(seconds)
                    self.stdout.write(f"settled {account} under {lease.fencing_token}")
            except polylock.AcquireTimeout as error:
                raise CommandError(f"account {account} is being settled already") from error
