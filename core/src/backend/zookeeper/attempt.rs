//! One attempt: getting in line, and going on from the place that an earlier attempt of the same waiter had.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{
    Ensemble,
    claim::Stage,
    line::Standing,
    name,
    place::Place,
    record,
    session::{Failure, Reply, Session},
    wire::{Kind, Request, code},
};
use crate::{
    Error, Result,
    backend::{Attempt, Claim},
    clock::Instant,
};

/// What became of an attempt.
enum Outcome {
    Granted {
        place: Arc<Place>,
        since: Instant,
    },
    Parked(Arc<Place>),
    /// As parked, but it is not known how it stands.
    Kept(Arc<Place>, Error),
    Busy {
        foreign: bool,
    },
    /// Nothing was made.
    Refused(Error),
    /// Something may be left of it: this, or what is not known.
    Left(Option<Arc<Place>>, Error),
}

/// A place that was just made.
struct Made {
    place: Arc<Place>,
    /// When that was asked for.
    sent: Instant,
    /// Who was in line right afterwards, if that was asked along.
    children: Option<Vec<String>>,
}

impl Ensemble {
    pub(super) async fn acquire(self: Arc<Self>, claim: Claim) -> Attempt {
        let (_until_over, trying) = watch::channel(());
        {
            let mut stage = claim.progress.contention.stage();
            if !matches!(*stage, Stage::New) {
                return Attempt::Refused(Error::closed()); // given up before it began
            }
            *stage = Stage::Trying(trying);
        }
        let outcome = self.contend(&claim).await;
        let (stage, attempt) = match outcome {
            Outcome::Granted { place, since } => {
                // To be told before the engine looks, and before the claim can be seen to hold.
                let _ = claim.progress.session.set(place.session.end());
                let fencing_token = place.token;
                (Stage::Has(place), Attempt::Granted { fencing_token, since })
            }
            Outcome::Parked(place) => (Stage::Parked(place), Attempt::held_for(None)),
            Outcome::Kept(place, error) => (Stage::Parked(place), Attempt::Refused(error)),
            Outcome::Busy { foreign } => {
                let busy = Attempt::Busy { free_in: None, foreign, contended: false, residue: false };
                (Stage::Over, busy)
            }
            Outcome::Refused(error) => (Stage::Over, Attempt::Refused(error)),
            Outcome::Left(place, error) => (place.map_or(Stage::Unsure, Stage::Has), Attempt::Unknown(error)),
        };
        // Whoever gives it up from now on finds the stage; who did before waits for us to be over, and finds it then.
        *claim.progress.contention.stage() = stage;
        attempt
    }

    async fn contend(self: &Arc<Self>, claim: &Claim) -> Outcome {
        let parked = if claim.waits { self.parked.take(&claim.resources, claim.mode) } else { None };
        if let Some(place) = &parked
            && place.is_undisturbed(Instant::now())
        {
            self.park(place);
            return Outcome::Parked(Arc::clone(place));
        }
        let session = match self.connected().await {
            Ok(session) => session,
            Err(error) => {
                self.delete_in_background(parked);
                return Outcome::Refused(error);
            }
        };
        if claim.progress.is_over() {
            self.delete_in_background(parked);
            return Outcome::Refused(Error::closed());
        }
        let (place, made_at, children) = match parked {
            Some(place) if Arc::ptr_eq(&place.session, &session) => (place, None, None),
            outdated => {
                // It went with its session, or goes soon.
                self.delete_in_background(outdated);
                match self.make_place(&session, claim).await {
                    Ok(made) => (made.place, Some(made.sent), made.children),
                    Err(Failure::Unanswered(error)) => return Outcome::Left(None, error),
                    Err(failure) => return Outcome::Refused(failure.into_error()),
                }
            }
        };
        let waits = claim.waits && !claim.progress.is_over();
        match self.look(&place, waits, children).await {
            Ok(Standing::First) => {}
            Ok(Standing::Behind { foreign: false, .. }) if waits => {
                self.park(&place);
                return Outcome::Parked(place);
            }
            Ok(standing) => {
                let foreign = matches!(standing, Standing::Behind { foreign: true, .. });
                return match self.delete(&place).await {
                    Ok(_) if standing == Standing::Gone => {
                        Outcome::Refused(Error::unavailable("our contender was deleted"))
                    }
                    Ok(_) => Outcome::Busy { foreign },
                    Err(error) => Outcome::Left(Some(place), error),
                };
            }
            Err(failure) => return self.keep(place, waits, failure),
        }
        let since = match made_at {
            Some(since) => since,
            // An earlier attempt made it.
            None => {
                place.gets_its_turn();
                match self.write(&place, claim, claim.ttl).await {
                    Ok(since) => since,
                    Err(failure) => return self.keep(place, waits, failure),
                }
            }
        };
        place.settle();
        Outcome::Granted { place, since }
    }

    /// After a failure: a connection that broke does not cost a waiter its place.
    fn keep(self: &Arc<Self>, place: Arc<Place>, waits: bool, failure: Failure) -> Outcome {
        if waits && !matches!(failure, Failure::Refused(_)) && !place.session.is_over() {
            self.park(&place);
            return Outcome::Kept(place, failure.into_error());
        }
        Outcome::Left(Some(place), failure.into_error())
    }

    /// Gets in line.
    async fn make_place(&self, session: &Arc<Session>, claim: &Claim) -> Result<Made, Failure> {
        const MOST_TRIES: u32 = 4;
        let directories = self.directories(&claim.resources);
        let prefixes: Vec<_> =
            directories.iter().map(|directory| name::contender(directory, claim.mode, claim.owner)).collect();
        let data = record::write(claim, claim.ttl, SystemTime::now());
        let mut tries = 0;
        loop {
            let made = match &prefixes[..] {
                [prefix] => self.make_one(session, &directories[0], prefix, &data).await,
                _ => self.make_all(session, &prefixes, &data).await,
            };
            match made {
                Ok((paths, zxid, sent, children)) => {
                    let made = (paths, u64::try_from(zxid).unwrap_or(0));
                    let place = Place::new(session, &claim.resources, claim.mode, directories, made, &self.changes);
                    return Ok(Made { place, sent, children });
                }
                // The server deletes an empty directory now and then, even right after we made it.
                Err(failure) if failure.is(code::NO_NODE) && tries < MOST_TRIES => {
                    tries += 1;
                    for directory in &directories {
                        self.make_directory(session, directory).await?;
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Makes a contender and looks who else is there, in one go: the server carries out what one session asks in order.
    async fn make_one(&self, session: &Session, directory: &str, prefix: &str, data: &[u8]) -> Result<Line, Failure> {
        let create = session.ask(Request::create(prefix, data, self.config.acl(), Kind::EphemeralSequential));
        let list = session.ask(Request::children(directory, false));
        let reply = create.await?;
        let (path, stat) = reply.read(|answer| answer.placed())?;
        // Should this fail, it is asked again.
        let children = list.await.and_then(|reply| reply.read(|answer| answer.children())).ok();
        Ok((vec![path], stat.created_zxid, reply.sent, children))
    }

    /// Makes a contender in each line, or none.
    async fn make_all(&self, session: &Session, prefixes: &[String], data: &[u8]) -> Result<Line, Failure> {
        let reply = session.ask(Request::create_all(prefixes, data, self.config.acl())).await?;
        let paths = reply.read(|answer| answer.created())?.map_err(Failure::Refused)?;
        // They are there, whatever becomes of this question.
        let unanswered = |failure: Failure| Failure::Unanswered(failure.into_error());
        let stat =
            session.ask(Request::stat(&paths[0])).await.and_then(|reply: Reply| reply.read(|stat| stat.stat()));
        Ok((paths, stat.map_err(unanswered)?.created_zxid, reply.sent, None))
    }

    /// Nothing of a claim's is made here: what fails was not sent, as far as the claim is concerned.
    async fn make_directory(&self, session: &Session, directory: &str) -> Result<(), Failure> {
        let make =
            async |path: &str, kind| match session.ask(Request::create(path, b"", self.config.acl(), kind)).await {
                Err(failure) if failure.is(code::NODE_EXISTS) => Ok(()),
                Err(Failure::Unanswered(error)) => Err(Failure::NotSent(error)),
                made => made.map(drop),
            };
        match make(directory, Kind::Container).await {
            Err(failure) if failure.is(code::NO_NODE) => {}
            made => return made,
        }
        let root = &self.config.root;
        for (end, _) in root.match_indices('/').skip(1).chain([(root.len(), "")]) {
            make(&root[..end], Kind::Persistent).await?;
        }
        make(directory, Kind::Container).await
    }

    /// Says in the contenders who holds and for how long. Answers when that was sent.
    pub(super) async fn write(&self, place: &Place, claim: &Claim, ttl: Duration) -> Result<Instant, Failure> {
        let data = record::write(claim, ttl, place.since());
        let reply = place.session.ask(Request::set_all(&place.paths, &data)).await?;
        match reply.read(|answer| answer.all_set())? {
            Ok(()) => Ok(reply.sent),
            Err(code) => Err(Failure::Refused(code)),
        }
    }
}

/// The paths of new contenders, the transaction that made them, when it was asked for, who else is there.
type Line = (Vec<String>, i64, Instant, Option<Vec<String>>);
