//! Giving back: deleting contenders, those too of which we do not know whether they were made.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    Ensemble,
    claim::Stage,
    name,
    place::Place,
    session::Failure,
    wire::{Request, code},
};
use crate::{
    Release, Result,
    backend::{Claim, Extension},
    clock::Instant,
    engine::{runtime, timer},
};

impl Ensemble {
    /// Deletes the contenders; says how many were there.
    pub(super) async fn delete(&self, place: &Place) -> Result<usize> {
        let session = self.connected().await?;
        let answers = join_all(place.paths.iter().map(|path| session.ask(Request::delete(path)))).await;
        let mut deleted = 0;
        for answer in answers {
            match answer {
                Ok(_) => deleted += 1,
                Err(failure) if failure.is(code::NO_NODE) => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
        place.settle();
        Ok(deleted)
    }

    pub(super) fn delete_in_background(self: &Arc<Self>, places: impl IntoIterator<Item = Arc<Place>>) {
        for place in places {
            let ensemble = Arc::clone(self);
            runtime::spawn(async move { ensemble.delete_surely(&place).await });
        }
    }

    /// Deletes again and again, until the session that made them must be gone too: it may live, though nothing is answered for
    /// longer than its timeout.
    pub(super) async fn delete_surely(&self, place: &Place) {
        const PAUSE: Duration = Duration::from_millis(200);
        let expires = Instant::now().after(place.session.timeout() * 2);
        while !self.is_closed() && (Instant::now() < expires || !place.session.is_over()) {
            match self.delete(place).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(?place, %error, "not deleted yet"),
            }
            timer::sleep_until(Instant::now().after(PAUSE)).await;
        }
    }

    pub(super) async fn release(self: Arc<Self>, claim: Claim) -> Release {
        claim.progress.give_up();
        let contention = &claim.progress.contention;
        if self.is_closed() {
            return Release::Released; // with the session
        }
        loop {
            let stage = {
                let mut stage = contention.stage();
                if matches!(*stage, Stage::New) {
                    *stage = Stage::Over;
                }
                stage.clone()
            };
            let place = match stage {
                Stage::New | Stage::Over => return Release::Released,
                Stage::Trying(mut until_over) => {
                    // The attempt closes the channel when it is over, or is lost with the engine.
                    while until_over.changed().await.is_ok() {}
                    let mut stage = contention.stage();
                    if matches!(*stage, Stage::Trying(_)) {
                        *stage = Stage::Unsure;
                    }
                    continue;
                }
                Stage::Parked(place) if self.parked.take_this(&place, || true) => place,
                Stage::Parked(_) => {
                    *contention.stage() = Stage::Over;
                    return Release::Released; // the next attempt has the place
                }
                Stage::Has(place) => place,
                Stage::Unsure => return self.sweep(&claim).await,
            };
            *contention.stage() = Stage::Has(Arc::clone(&place));
            place.session.forget(claim.owner);
            return match self.delete(&place).await {
                Ok(deleted) => {
                    *contention.stage() = Stage::Over;
                    if deleted == place.paths.len() { Release::Released } else { Release::NotHeld }
                }
                Err(error) => {
                    tracing::debug!(?place, %error, "not released");
                    Release::Unknown
                }
            };
        }
    }

    /// Finds and deletes what an unanswered creation made.
    ///
    /// The session has another connection since, so that the creation was put in order before, or never will be: servers
    /// refuse what comes over a connection that its session has left. The answer to `sync` says that what was put in order can be seen here.
    /// A request that the server was just reading at that moment is looked for once more, later.
    async fn sweep(self: &Arc<Self>, claim: &Claim) -> Release {
        const LATER: Duration = Duration::from_secs(1);
        match self.sweep_once(claim).await {
            Ok(found) => {
                if found == 0 {
                    let (ensemble, claim) = (Arc::downgrade(self), claim.clone());
                    runtime::spawn(async move {
                        loop {
                            timer::sleep_until(Instant::now().after(LATER)).await;
                            let Some(ensemble) = ensemble.upgrade().filter(|ensemble| !ensemble.is_closed()) else {
                                return;
                            };
                            // The connection may break just then.
                            if ensemble.sweep_once(&claim).await.is_ok() {
                                return;
                            }
                        }
                    });
                }
                *claim.progress.contention.stage() = Stage::Over;
                Release::Released
            }
            Err(error) => {
                tracing::debug!(owner = %claim.owner, %error, "not released");
                Release::Unknown
            }
        }
    }

    async fn sweep_once(&self, claim: &Claim) -> Result<usize> {
        let session = self.connected().await?;
        let mut found = 0;
        for directory in self.directories(&claim.resources) {
            let synced = session.ask(Request::sync(&directory));
            let listed = session.ask(Request::children(&directory, false));
            synced.await.map_err(Failure::into_error)?;
            let children = match listed.await {
                Ok(reply) => reply.read(|answer| answer.children()).map_err(Failure::into_error)?,
                Err(failure) if failure.is(code::NO_NODE) => continue,
                Err(failure) => return Err(failure.into_error()),
            };
            let ours = children.iter().filter_map(|child| name::Contender::read(child));
            for contender in ours.filter(|contender| contender.owner == claim.owner.as_str()) {
                match session.ask(Request::delete(&format!("{directory}/{}", contender.name))).await {
                    Ok(_) => found += 1,
                    Err(failure) if failure.is(code::NO_NODE) => {}
                    Err(failure) => return Err(failure.into_error()),
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn extend(self: Arc<Self>, claim: Claim, ttl: Duration) -> Extension {
        let Stage::Has(place) = claim.progress.contention.stage().clone() else { return Extension::Lost };
        if let Err(error) = place.session.connected().await {
            // Its contenders went with the session.
            tracing::debug!(?place, %error, "not extended");
            return Extension::Lost;
        }
        match self.write(&place, &claim, ttl).await {
            Ok(since) => Extension::Extended { since },
            Err(failure) if failure.is(code::NO_NODE) => Extension::Lost,
            Err(failure) => Extension::Unknown(failure.into_error()),
        }
    }
}
