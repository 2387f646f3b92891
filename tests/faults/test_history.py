#!/usr/bin/env python3
"""The checker finds what it is there for: histories that are wrong in one way each."""

from __future__ import annotations

import pathlib
import sys
import tempfile
import unittest

from history import SECOND, TOLD_WITHIN, History, check

LATE = TOLD_WITHIN + 1


def history(**logs: str) -> History:
    """Of workers by what they told, a line each."""
    found = History()
    with tempfile.TemporaryDirectory() as directory:
        for worker, text in logs.items():
            log = pathlib.Path(directory) / worker
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            log.write_text("".join(f"{line}\n" for line in lines))
            found.read(worker, log)
    return found


def wrongs(found: History, *, keeps: bool = False) -> list[str]:
    findings = check(found, keeps=keeps)
    return [violation.what for violation in findings.overlaps + findings.others]


RIGHT = """
    10 call r 1 500
    20 granted r 1 7
    21 wrote r 1 ok
    30 valid r 1 -
    40 release r 1 -
    50 released r 1 released
    60 call r 2 0
    70 failed r 2 Timeout
"""


class Checker(unittest.TestCase):
    """One wrong each."""

    def test_nothing_is_wrong(self) -> None:
        after = "35 call r 1 0\n45 granted r 1 8\n46 release r 1 -\n47 released r 1 released\n80 end - 0 -"
        self.assertEqual(wrongs(history(one=RIGHT, two=after)), [])

    def test_two_at_a_time(self) -> None:
        inside = "21 call r 1 0\n25 granted r 1 8\n46 release r 1 -\n47 released r 1 released"
        self.assertIn("two at a time", wrongs(history(one=RIGHT, two=inside))[0])

    def test_two_at_a_time_with_one_between(self) -> None:
        long = "1 call r 1 0\n2 granted r 1 1\n100 valid r 1 -"
        short = "3 call r 1 0\n4 granted r 1 2\n5 release r 1 -\n6 released r 1 released"
        later = "7 call r 1 0\n8 granted r 1 3\n9 release r 1 -\n10 released r 1 released"
        self.assertEqual(len(wrongs(history(long=long, short=short, later=later))), 2)

    def test_holders_beside_each_other(self) -> None:
        def one(token: int, beside: int) -> str:
            return f"1 call r 1 0\n2 beside r 1 {beside}\n{token} granted r 1 {token}\n100 valid r 1 -"

        self.assertEqual(wrongs(history(one=one(10, 1), two=one(11, 1))), [])
        self.assertIn("3 at a time", wrongs(history(one=one(10, 1), two=one(11, 1), three=one(12, 1)))[0])
        # Who shares it and who does not.
        self.assertIn("two at a time", wrongs(history(one=one(10, 9), two=one(11, 0)))[0])
        self.assertIn("two at a time", wrongs(history(one=one(10, 0), two=one(11, 9)))[0])

    def test_what_is_broken(self) -> None:
        held = f"1 call r 1 0\n2 granted r 1 7\n{10 + SECOND} valid r 1 -"
        broken, next_one = "5 breaks r 1 7\n6 broke r 1 7", "7 call r 1 0\n8 granted r 1 8"
        told, late = f"{held}\n{20 + SECOND} lost r 1 taken", f"{held}\n{20 + SECOND} lost r 1 expired"
        self.assertIn("two at a time", wrongs(history(one=told, three=next_one))[0])
        self.assertEqual(wrongs(history(one=told, two=broken, three=next_one), keeps=True), [])
        self.assertIn("not told so before its ttl", wrongs(history(one=late, two=broken))[0])
        # It could not ask.
        found = history(**{"c.1": late, "two": broken})
        found.troubles["c"].append((5, 10))
        self.assertEqual(wrongs(found), [])
        # Nobody renews it.
        self.assertEqual(wrongs(history(one=late.replace("2 granted", "1 lasts r 1 9999\n2 granted"), two=broken)), [])
        released = f"{held}\n{20 + SECOND} release r 1 -\n{21 + SECOND} released r 1 released"
        self.assertIn("released all the same", wrongs(history(one=released, two=broken))[0])

    def test_a_loss_without_a_cause(self) -> None:
        lost = history(one="1 call r 1 0\n2 granted r 1 1\n3 lost r 1 taken")
        self.assertEqual(wrongs(lost), [])
        self.assertIn("though nobody broke it", wrongs(lost, keeps=True)[0])

    def test_what_is_not_understood(self) -> None:
        self.assertIn("was refused", wrongs(history(one="1 call r 1 0\n2 failed r 1 UnsupportedError"))[0])

    def test_a_smaller_token_later(self) -> None:
        later = "55 call r 1 0\n65 granted r 1 6\n66 release r 1 -\n67 released r 1 released"
        self.assertIn("token 6 of two#1 on r after 7", wrongs(history(one=RIGHT, two=later))[0])

    def test_the_same_token(self) -> None:
        # At the same time, so that neither is later.
        same = "15 call r 1 0\n18 granted r 1 7\n18 release r 1 -\n19 released r 1 released"
        self.assertIn("the same token", wrongs(history(one=RIGHT, two=same))[0])

    def test_a_lease_without_end(self) -> None:
        text = "1 call r 1 0\n2 lasts r 1 1\n3 granted r 1 1\n1000003 valid r 1 -"
        self.assertEqual(wrongs(history(one=text)), [])
        self.assertIn("after its ttl", wrongs(history(one=f"{text}\n1000004 valid r 1 -"))[0])
        self.assertEqual(wrongs(history(one=f"{text}\n1000004 extend r 1 -\n1000005 valid r 1 -")), [])

    def test_a_lease_that_is_valid_though_lost(self) -> None:
        text = "1 call r 1 0\n2 granted r 1 1\n4 lost r 1 taken\n3 valid r 1 -"
        self.assertEqual(wrongs(history(one=text)), [])
        self.assertIn("told of its loss", wrongs(history(one=f"{text}\n5 valid r 1 -"))[0])

    def test_a_loss_that_is_not_told(self) -> None:
        text = "1 call r 1 0\n2 granted r 1 1\n3 invalid r 1 -"
        self.assertIn("not told", wrongs(history(one=text))[0])

    def test_a_loss_that_is_told_late(self) -> None:
        text = f"1 call r 1 0\n2 granted r 1 1\n3 invalid r 1 -\n{3 + LATE} lost r 1 expired"
        found = history(one=text)
        self.assertIn("told of its loss after", wrongs(found)[0])
        # It was stopped meanwhile.
        found.pauses["one"].append((4, 5))
        self.assertEqual(wrongs(found), [])

    def test_a_loss_that_was_none(self) -> None:
        self.assertIn("after it had released", wrongs(history(one=f"{RIGHT}\n80 lost r 1 expired"))[0])

    def test_a_wait_without_end(self) -> None:
        found = history(one="1 call r 1 0")
        self.assertIn("never ended", wrongs(found)[0])
        found.killed.add("one")
        self.assertEqual(wrongs(found), [])

    def test_a_wait_that_is_too_long(self) -> None:
        self.assertIn("after its wait", wrongs(history(one=f"1 call r 1 500\n{20 * SECOND} failed r 1 Timeout"))[0])

    def test_a_worker_that_was_killed_in_the_middle_of_a_line(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            log = pathlib.Path(directory) / "one"
            log.write_text("1 call r 1 500\n2 gran")
            found = History()
            found.read("one", log)
        self.assertEqual(len(found.attempts), 1)
        self.assertEqual(found.attempts[0].granted, 0)


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    bad = len(result.failures) + len(result.errors)
    print(f"checker: {result.testsRun - bad} passed, {bad} failed")
    sys.exit(bool(bad))
