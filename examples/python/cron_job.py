"""A cron job that is on every host and runs on one of them: `cron_job.py URL [SECONDS]`.

*/5 * * * *  cron_job.py redis://locks/0
"""

import sys
import time

import polylock


def main(url: str, seconds: float) -> int:
    """Runs the job, unless another host is at it. What cron gets is 0 then, too."""
    with polylock.connect(url) as locks:
        # If this host dies another may begin after `ttl`; if the job hangs, after `max_hold`.
        lease = locks.try_acquire("cron:clean-up", ttl=30, max_hold=4 * 60, label="clean-up")
        if lease is None:
            print("another host is at it")
            return 0
        with lease:
            time.sleep(seconds)
            print(f"cleaned up under {lease.fencing_token}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]) if sys.argv[2:] else 0.1))
