"""An endpoint that charges an order once, whichever worker gets the request: `uvicorn fastapi_endpoint:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastapi
import polylock.asyncio

charged: dict[int, int] = {}  # order -> fencing token; a database in real life


@asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Connects when a worker starts, and releases what is left when it ends."""
    async with polylock.asyncio.connect(os.environ.get("LOCKS", "memory:")) as locks:
        app.state.locks = locks
        yield


app = fastapi.FastAPI(lifespan=lifespan)


@app.post("/orders/{number}/charge")
async def charge(number: int, request: fastapi.Request) -> dict[str, int]:
    """Charges it under a lock; 409 if it was charged before, 503 if somebody is at it for too long."""
    try:
        async with request.app.state.locks.lock(f"order:{number}", ttl=10, wait=2) as lease:
            if number in charged:
                raise fastapi.HTTPException(409, "charged already")
            charged[number] = lease.fencing_token
            return {"order": number, "token": lease.fencing_token}
    except polylock.AcquireTimeout:
        raise fastapi.HTTPException(503, "try again", headers={"Retry-After": "2"}) from None
