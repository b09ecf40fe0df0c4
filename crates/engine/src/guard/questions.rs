//! The guard's decisions about DNS with rules by name: the questions that the guest may ask, and the addresses that an
//! answer may contain.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wire::{
    dns::Type,
    domain::{reverse_address, without_service},
};

use super::{Guard, Rules};
use crate::{
    events,
    flow::{Endpoints, HashKey, Protocol},
    names::Answers,
    policy::{NameVerdict, Reason},
    timer::Instant,
};

/// How long a refused name is remembered. After a refusal, stub resolvers append the next search domain to the name and
/// ask again at once.
const RECENT: Duration = Duration::from_secs(30);
/// Maximum number of refused names that are remembered.
const MOST_RECENT: usize = 64;

/// A question of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The guest's end.
    pub client: SocketAddr,
    /// The name, in the form of [`wire::dns::write_text`].
    pub name: &'a str,
    /// The type of the requested records.
    pub kind: Type,
    /// The reason why questions of this type are refused for all names. None if the answer depends on the name.
    pub useless: Option<&'static str>,
    /// The search list that was advertised to the guest.
    pub search: &'a [String],
}

/// A question or an answer that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whether the name may have other records, or names below the name may be allowed.
    pub name_exists: bool,
    /// The rule that refuses, or another reason, as text.
    pub text: String,
}

impl Refused {
    fn existing(text: &str) -> Self {
        Self { name_exists: true, text: text.into() }
    }
}

/// The hashes of refused names, each with the time of the refusal.
#[derive(Debug, Default)]
pub(super) struct Recent {
    names: Vec<(u64, Instant)>,
    /// Index of the next entry. If the list is full, this is the oldest entry.
    next: usize,
    hash_key: Option<HashKey>,
}

impl Recent {
    pub(super) const fn new(hash_key: [u8; 16]) -> Self {
        Self { names: Vec::new(), next: 0, hash_key: Some(HashKey(hash_key)) }
    }

    fn note(&mut self, name: &str, now: Instant) {
        let Some(hash_key) = &self.hash_key else { return };
        let noted = (hash_key.hash_one(name), now);
        if let Some(same) = self.names.iter_mut().find(|(hash, _)| *hash == noted.0) {
            *same = noted;
            return;
        }
        match self.names.get_mut(self.next) {
            Some(oldest) => *oldest = noted,
            None => self.names.push(noted),
        }
        self.next = (self.next + 1) % MOST_RECENT;
    }

    fn has(&self, name: &str, now: Instant) -> bool {
        let Some(hash_key) = &self.hash_key else { return false };
        let hash = hash_key.hash_one(name);
        self.names.iter().any(|&(noted, at)| noted == hash && now.since(at) < RECENT)
    }

    /// Whether `name` is a refused name with one of the domains of `search` appended.
    fn has_searched(&self, name: &str, search: &[String], now: Instant) -> bool {
        !self.names.is_empty()
            && search.iter().any(|domain| {
                let domain = domain.trim_matches('.');
                let cut = name.len().checked_sub(domain.len()).filter(|&cut| name.is_char_boundary(cut));
                let (start, end) = name.split_at(cut.unwrap_or(0));
                let refused = start.strip_suffix('.').filter(|_| end.eq_ignore_ascii_case(domain));
                refused.is_some_and(|refused| self.has(refused, now))
            })
    }
}

impl Guard {
    /// Whether there are rules by name. Then every DNS question of the guest is judged, and goes to the host's
    /// resolvers, even if the guest sends it to another server.
    #[must_use]
    pub fn judges_questions(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.policy.has_names())
    }

    /// Whether refusals are only logged.
    #[must_use]
    pub fn audits(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.mode.audit)
    }

    /// Whether the guest may ask a question. `is_local` returns whether an address is in the guest's own network. A
    /// refusal is counted and logged.
    ///
    /// # Errors
    /// The refusal.
    pub fn admits_question(
        &mut self,
        asked: &Asked<'_>,
        is_local: impl FnOnce(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let judged = self.judge_name(rules, asked, is_local, now);
        let judged = match (judged, asked.useless) {
            (Ok(()), Some(why)) => Err(Refused::existing(why)),
            (Err(refused), _) => {
                self.recent.note(asked.name, now);
                Err(refused)
            }
            (judged, None) => judged,
        };
        self.settle(asked, false, judged)
    }

    /// Whether the guest may get an answer to a question. `leads_to_host` returns whether an address of the answer
    /// leads to the host itself. A refusal is counted and logged. The names and addresses of an admitted answer are
    /// noted, so this must be called before the answer is sent to the guest.
    ///
    /// # Errors
    /// The refusal: an address of the answer is not public, and no rule allows it (DNS rebinding).
    pub fn admits_answer(
        &mut self,
        asked: &Asked<'_>,
        answers: &Answers,
        mut leads_to_host: impl FnMut(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let mut addresses = answers.addresses.iter().map(|given| given.address);
        let withheld = addresses.find_map(|address| rules.withholds(address, leads_to_host(address)));
        let judged = withheld.map_or(Ok(()), |why| Err(Refused::existing(&why)));
        self.settle(asked, true, judged)?;
        self.learn(asked.name, answers, now);
        Ok(())
    }

    /// Counts and logs a message of the guest to port 53 that is not a query. The message is dropped, even in an audit,
    /// since only queries are forwarded.
    pub fn note_no_query(&mut self, protocol: Protocol, ends: &Endpoints, why: &'static str) {
        self.refused += 1;
        log::warn!("refused: DNS {} -> {}: {why} (rules by name)", ends.guest, ends.remote);
        self.report_refusal(why, None, || events::Refused::Flow { protocol, ends: *ends });
    }

    /// Logs, counts and reports a refusal of a question, or of its answer if it was `answered`. In an audit, turns it
    /// into an admission.
    fn settle(
        &mut self,
        asked: &Asked<'_>,
        answered: bool,
        judged: Result<(), Refused>,
    ) -> Result<(), Refused> {
        let (Some(rules), Err(refused)) = (&self.rules, judged) else { return Ok(()) };
        self.refused += 1;
        let Asked { client, name, kind, .. } = asked;
        let what = if answered { "was answered for" } else { "asked for" };
        log::warn!("{}: DNS {client} {what} {name} {kind} ({})", rules.refused(), refused.text);
        self.report_refusal(&refused.text, None, || events::Refused::Question {
            client: *client,
            name: (*name).into(),
            kind: kind.to_string().into(),
            answered,
        });
        if rules.mode.audit { Ok(()) } else { Err(refused) }
    }

    fn judge_name(
        &self,
        rules: &Rules,
        asked: &Asked<'_>,
        is_local: impl FnOnce(IpAddr) -> bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let (reason, names_below) = match self.allows_name(rules, asked.name, now) {
            NameVerdict::Allow(_) if self.recent.has_searched(asked.name, asked.search, now) => {
                return Err(Refused::existing("a refused name and a search domain"));
            }
            NameVerdict::Allow(_) => return Ok(()),
            NameVerdict::Deny { reason, names_below } => (reason, names_below),
        };
        // A client that validates signatures asks for the keys of all zones above a name.
        let is_above_allowed = names_below && matches!(asked.kind, Type::DS | Type::DNSKEY);
        let is_of_known_address = asked.kind == Type::PTR
            && reverse_address(asked.name).is_some_and(|address| {
                let named = || self.names.iter().any(|names| names.lookup(address, now).next().is_some());
                rules.policy.may_reach(address, false) || named() || is_local(address)
            });
        if is_above_allowed || is_of_known_address {
            return Ok(());
        }
        Err(Refused { name_exists: names_below, text: rules.policy.text(reason).to_string() })
    }

    /// The verdict on a question for `name`. A rule about the name itself has precedence. Otherwise the question is
    /// allowed if the rules allow the name without its service labels, or a name that leads to `name`.
    pub(super) fn allows_name(&self, rules: &Rules, name: &str, now: Instant) -> NameVerdict {
        let by_rule =
            |verdict| matches!(verdict, NameVerdict::Deny { reason, .. } if rules.is_by_name(reason));
        let verdict = rules.policy.name_verdict(name);
        let service = match without_service(name) {
            itself if itself.len() == name.len() => verdict,
            service => rules.policy.name_verdict(service),
        };
        if by_rule(verdict) || matches!(verdict, NameVerdict::Allow(_)) && !by_rule(service) {
            return verdict;
        }
        if by_rule(service) || matches!(service, NameVerdict::Allow(_)) {
            return service;
        }
        let names = self.names.iter().flat_map(|names| names.lookup_target(name, now));
        let mut verdicts = names.map(|name| rules.policy.name_verdict(name));
        verdicts.find(|verdict| matches!(verdict, NameVerdict::Allow(_))).unwrap_or(verdict)
    }

    /// Notes the addresses and targets of an answer, for the name in the question and for the names that lead to it.
    /// Names without a rule are noted only in an audit, for the log.
    fn learn(&mut self, asked: &str, answers: &Answers, now: Instant) {
        let (Some(rules), Some(names)) = (&self.rules, &mut self.names) else { return };
        let service = Some(without_service(asked)).filter(|service| service.len() < asked.len());
        let stands_for: Vec<String> = [Some(asked), service]
            .into_iter()
            .flatten()
            .chain(names.lookup_target(asked, now))
            .filter(|name| rules.mode.audit || rules.policy.has_rule_about(name))
            .map(String::from)
            .collect();
        let mut complete = true;
        for name in &stands_for {
            for given in &answers.addresses {
                complete &= names.learn(given.address, name, given.ttl, now);
            }
            for target in &answers.targets {
                complete &= names.learn_target(&target.name, name, target.ttl, now);
            }
        }
        if !complete {
            log::warn!("The table of names is full: flows to some addresses of {asked} will be refused");
        }
    }
}

impl Rules {
    /// Why no answer may have this address, as text. None: it may.
    pub(super) fn withholds(&self, address: IpAddr, leads_to_host: bool) -> Option<String> {
        (!self.policy.may_answer(address, leads_to_host))
            .then(|| alloc::format!("its address {address} is not public, and no rule allows it"))
    }

    pub(super) fn is_by_name(&self, reason: Reason) -> bool {
        match reason {
            Reason::Rule(index) => self.policy.rules().get(index).is_some_and(super::Rule::is_by_name),
            Reason::Default | Reason::NameService => false,
        }
    }
}

#[cfg(test)]
mod tests;
