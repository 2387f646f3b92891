//! Looking and breaking, over one node or several.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{
    future,
    stream::{FuturesUnordered, StreamExt},
};
use redis::Value;

use super::{
    RedisBackend, holder,
    keys::{self, Key},
    number, out_of_reach,
    quorum::majority,
    request::{self, Request, Server},
};
use crate::{
    Error, Holder, Resource, Result,
    backend::Said,
    clock::Instant,
    engine::{driver::Driver, timer},
    pattern::{Part, Pattern},
};

/// How much longer an inspection waits for the others when a majority has answered.
const STRAGGLERS: Duration = Duration::from_millis(50);

/// What a node has to answer within is a part of a ttl; here there is none.
const LIKE_A_TTL: Duration = Duration::from_secs(30);

/// Keys that a server looks at before it does other work.
const STEP: usize = 500;

/// Locks that are looked at side by side.
const AT_ONCE: usize = 64;

impl RedisBackend {
    /// Who holds `resource`, whoever may stay longest first.
    pub(super) async fn holders(&self, resource: &Resource, driver: &Driver) -> Result<Vec<Holder>> {
        let expires = Instant::now().after(self.node_timeout(LIKE_A_TTL));
        let request = Request::inspect(&self.prefix, resource, expires);
        let nodes = self.nodes.iter().enumerate();
        let asks = nodes.map(|(index, node)| Arc::clone(node).run(request.to(index), driver.clone()));
        let mut answers: FuturesUnordered<_> = asks.collect();
        let (mut seen, mut answered, mut errors) = (Vec::<Holder>::new(), 0, Vec::new());
        let mut patience = None;
        // Once a majority has answered the others get a little more time: one that is silent would take all of it.
        while let Some(Some(answer)) = timer::until(patience, answers.next()).await {
            match answer {
                Ok(answer) => match holder::read(&answer.value, resource) {
                    Some(holders) => {
                        seen.extend(holders);
                        answered += 1;
                    }
                    None => errors.push(Error::unavailable("an answer of another kind")),
                },
                Err(error) => errors.push(error.into_error()),
            }
            if patience.is_none() && answered >= majority(self.nodes.len()) {
                patience = Some(Instant::now().after(STRAGGLERS).min(expires));
            }
        }
        if answered < majority(self.nodes.len()) {
            return Err(out_of_reach(errors));
        }
        Ok(self.agreed(seen))
    }

    /// Held is what a majority of the nodes agrees on, and until that majority is gone: an extension may still be on
    /// its way to the others.
    fn agreed(&self, seen: Vec<Holder>) -> Vec<Holder> {
        let needed = majority(self.nodes.len());
        // Waiters listen at every node, so one that answers knows of all.
        let waiting = seen.iter().filter_map(|holder| holder.waiting).max();
        let owners: BTreeSet<_> = seen.iter().map(|holder| holder.owner.clone()).collect();
        let agreed = owners.into_iter().filter_map(|owner| {
            let mut same: Vec<_> = seen.iter().filter(|holder| holder.owner == owner).collect();
            same.sort_unstable_by_key(|holder| holder.expires_in.unwrap_or(Duration::MAX));
            let lasting = same.iter().rev().nth(needed - 1)?.expires_in;
            // A node on which somebody else came later has forgotten the token.
            let known = same.iter().find(|holder| holder.fencing_token.is_some()).unwrap_or(&same[0]);
            Some(Holder { expires_in: lasting, waiting, ..(*known).clone() })
        });
        let mut agreed: Vec<_> = agreed.collect();
        agreed.sort_by_key(|holder| std::cmp::Reverse(holder.expires_in.unwrap_or(Duration::MAX)));
        agreed
    }

    /// See [`Backend::list`](crate::backend::Backend::list).
    pub(super) async fn list_all(&self, pattern: &Pattern, limit: usize, driver: &Driver) -> Result<Vec<Holder>> {
        if let Some(resource) = pattern.only() {
            return self.holders(&resource, driver).await;
        }
        // Whatever a majority holds is at one of these nodes.
        let needed = self.nodes.len() - majority(self.nodes.len()) + 1;
        let scans = self.nodes.iter().map(|node| self.scan_all(node, pattern, limit, driver));
        let mut scans: FuturesUnordered<_> = scans.collect();
        let (mut resources, mut scanned, mut errors) = (BTreeSet::new(), 0, Vec::new());
        while let Some(found) = scans.next().await {
            match found {
                Ok(found) => {
                    resources.extend(found);
                    scanned += 1;
                }
                Err(error) => errors.push(error),
            }
        }
        if scanned < needed {
            return Err(out_of_reach(errors));
        }
        let resources: Vec<_> = resources.into_iter().collect();
        let mut holders = Vec::new();
        for some in resources.chunks(AT_ONCE) {
            let looks = some.iter().map(|resource| self.holders(resource, driver));
            holders.extend(future::try_join_all(looks).await?.into_iter().flatten());
            if holders.len() >= limit {
                break;
            }
        }
        Ok(holders)
    }

    /// The resources that match and are locked on all that one node consists of.
    async fn scan_all(
        &self,
        node: &Arc<dyn Server>,
        pattern: &Pattern,
        limit: usize,
        driver: &Driver,
    ) -> Result<BTreeSet<Resource>> {
        let expires = Instant::now().after(self.node_timeout(LIKE_A_TTL));
        let parts = Arc::clone(node).parts(expires).await.map_err(|error| error.into_error())?;
        let scans = parts.iter().map(|part| self.scan(part, pattern, limit, driver));
        Ok(future::try_join_all(scans).await?.into_iter().flatten().collect())
    }

    /// The resources that match and are locked on one node, `limit` at most. Fences tell locks from other keys.
    async fn scan(
        &self,
        node: &Arc<dyn Server>,
        pattern: &Pattern,
        limit: usize,
        driver: &Driver,
    ) -> Result<BTreeSet<Resource>> {
        let ask = |command: redis::Cmd| async {
            let expires = Instant::now().after(self.node_timeout(LIKE_A_TTL));
            Arc::clone(node).command(command, driver.clone(), expires).await.map_err(|error| error.into_error())
        };
        let glob = glob(&self.prefix, pattern);
        let mut found = BTreeSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&glob).arg("COUNT").arg(STEP);
            let (next, fences) = read_scan(&ask(scan).await?)
                .ok_or_else(|| Error::unavailable(format!("{}: an answer of another kind", node.name())))?;
            let locks = fences.iter().flat_map(|fence| keys::locks_of(fence)).filter_map(|lock| {
                let resource = Resource::new(lock.strip_prefix(&self.prefix)?).ok()?;
                pattern.matches(resource.as_str()).then_some(resource)
            });
            let ask = &ask;
            let held = locks.map(|resource| async move {
                let mut exists = redis::cmd("EXISTS");
                exists.arg(Key::of(&self.prefix, &resource).lock());
                Ok::<_, Error>((number(&ask(exists).await?) == Some(1)).then_some(resource))
            });
            for resource in future::try_join_all(held).await? {
                found.extend(resource);
            }
            if next == b"0" || found.len() >= limit {
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// See [`Backend::ask_each`](crate::backend::Backend::ask_each).
    pub(super) async fn ask_servers(&self, question: &[&str], driver: &Driver) -> Vec<Said> {
        let expires = Instant::now().after(self.node_timeout(LIKE_A_TTL));
        let asks = self.nodes.iter().map(|node| ask_server(Arc::clone(node), question, driver, expires));
        future::join_all(asks).await.concat()
    }

    /// See [`Backend::break_lock`](crate::backend::Backend::break_lock). A holder has a majority; it has none any
    /// more as soon as the nodes that may still be its are too few for one.
    pub(super) async fn break_everywhere(&self, resource: &Resource, owner: &str, driver: &Driver) -> Result<bool> {
        let expires = Instant::now().after(self.node_timeout(LIKE_A_TTL));
        let request = Request::break_lock(&self.prefix, resource, owner, expires);
        let nodes = self.nodes.len();
        let (mut freed, mut not, mut errors) = (0, 0, Vec::new());
        let decide = |_, answer: request::Answer| {
            match answer.map(|answer| (number(&answer.value), answer.repeated)) {
                Ok((Some(1), _)) => freed += 1,
                // The first request may have freed it.
                Ok((Some(_), false)) => not += 1,
                Ok(_) => errors.push(Error::unavailable("asked twice, and free the second time")),
                Err(error) => errors.push(error.into_error()),
            }
            if not >= majority(nodes) {
                Some(false)
            } else {
                (freed > 0 && nodes - freed - not < majority(nodes)).then_some(true)
            }
        };
        let decided = self.ask(&request, driver, decide, |_| |_, _| {}, Duration::ZERO).await;
        decided.ok_or_else(|| out_of_reach(errors))
    }
}

/// What a server says, or each server of a cluster for itself.
async fn ask_server(node: Arc<dyn Server>, question: &[&str], driver: &Driver, expires: Instant) -> Vec<Said> {
    let parts = match Arc::clone(&node).parts(expires).await {
        Ok(parts) => parts,
        Err(error) => return vec![(node.name().to_owned(), Err(error.into_error()))],
    };
    let mut said = Vec::new();
    for part in parts {
        let mut command = redis::Cmd::new();
        command.arg(question);
        let answer = Arc::clone(&part).command(command, driver.clone(), expires).await;
        let mut texts = Vec::new();
        let answer = answer.map(|answer| flatten(&answer, &mut texts)).map_err(|error| error.into_error());
        said.push((part.name().to_owned(), answer.map(|()| texts)));
    }
    said
}

/// The pattern of the fences' names, as the server understands it: whatever it finds is looked at again.
fn glob(prefix: &str, pattern: &Pattern) -> String {
    let mut glob = format!("{}*", keys::FENCES);
    for part in prefix.chars().map(Part::Is).chain(pattern.parts().iter().copied()) {
        match part {
            Part::Is(c) => {
                if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
                    glob.push('\\');
                }
                glob.push(c);
            }
            // A ? of the server's is one byte.
            Part::One | Part::Any => glob.push('*'),
        }
    }
    glob.push('*');
    glob
}

/// All texts in an answer, whatever its shape.
fn flatten(answer: &Value, texts: &mut Vec<String>) {
    match answer {
        Value::Array(parts) | Value::Set(parts) => parts.iter().for_each(|part| flatten(part, texts)),
        Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
            flatten(key, texts);
            flatten(value, texts);
        }),
        Value::BulkString(bytes) => texts.push(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => texts.push(text.clone()),
        Value::Int(number) => texts.push(number.to_string()),
        Value::Okay => texts.push("OK".to_owned()),
        _ => {}
    }
}

/// The next cursor and the keys in an answer to SCAN. Keys that are not UTF-8 are not ours.
fn read_scan(answer: &Value) -> Option<(Vec<u8>, Vec<String>)> {
    let Value::Array(parts) = answer else { return None };
    let [Value::BulkString(cursor), Value::Array(keys)] = &parts[..] else { return None };
    let names = keys.iter().filter_map(|key| match key {
        Value::BulkString(key) => String::from_utf8(key.clone()).ok(),
        _ => None,
    });
    Some((cursor.clone(), names.collect()))
}
