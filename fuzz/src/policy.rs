//! Rules for the guest's flows. The result of any text is a policy, or an error with a message. The text of a parsed
//! rule gives the same rule when it is parsed again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use engine::flow::Protocol;
use engine::policy::{
    Action, Lookup, Policy, Question, Reason, Verdict,
    spec::{parse, parse_file},
};

use crate::input::Input;

/// A lookup in which every address has this name.
struct Named<'a>(&'a str);

impl Lookup for Named<'_> {
    fn names(&self, _: IpAddr) -> impl Iterator<Item = &str> {
        [self.0].into_iter()
    }
}

/// Input: a question, then a name and the text of the rules. A zero byte separates name and text.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let question = question(&mut input);
    let text = String::from_utf8_lossy(input.rest());
    let (name, text) = text.split_once('\0').unwrap_or(("", &text));

    if let Err(error) = parse(Action::Allow, text) {
        let message = error.to_string();
        assert!(!message.is_empty() && !message.contains(char::is_control), "{message}");
    }
    let file = match parse_file(text) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().contains(char::is_control), "{error}"),
    };
    for rule in &file.rules {
        let again = parse_file(&rule.text).map(|file| file.rules);
        assert_eq!(again.as_deref(), Ok(std::slice::from_ref(rule)));
    }
    let policy = match Policy::new(file.rules, file.default) {
        Ok(policy) => policy,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let names = Named(name);
    let (verdict, claim) = (policy.verdict(&question, &names), policy.claim_verdict(&question, name, &names));
    assert_eq!(verdict, claim, "there is no other name");
    if let Verdict::Allow(reason) | Verdict::Deny(reason) = verdict {
        assert!(!policy.text(reason).is_empty());
    }
    if let Verdict::AllowNamed { rule, .. } = verdict {
        assert!(policy.rules()[rule].names(name), "{}", policy.text(Reason::Rule(rule)));
    }
    let _ = (policy.name_verdict(name), policy.may_answer(question.destination.ip(), question.leads_to_host));
}

fn question(input: &mut Input<'_>) -> Question {
    let protocol = input.pick(&Protocol::ALL.map(|(_, protocol)| protocol));
    let switches = input.byte();
    let address: IpAddr = if switches & 1 == 0 {
        Ipv4Addr::from(input.array()).into()
    } else {
        Ipv6Addr::from(input.array()).into()
    };
    Question {
        protocol,
        destination: SocketAddr::new(address, input.u16()),
        leads_to_host: switches & 2 != 0,
    }
}
