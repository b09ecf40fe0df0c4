//! The protocol of the control socket, which shows and changes forwarding rules at run time (`--conf-path`, behaviour
//! §8.9).
//!
//! ```text
//!        client (pesto)                               server (passt, pasta)
//!             |                                                |
//!             |  <--- greeting, tables, end mark -----------   |   message: announcement
//!             |                                                |
//!             |  ---- tables, end mark -------------------->   |   message: Update (optional)
//!             |  ---- end of stream ----------------------->   |
//!             |                                                |
//!             |  <--- status byte, text, end of stream -----   |   reply
//!
//!                         or, in place of an update:
//!
//!             |  ---- request ----------------------------->   |   policy: Request
//!             |                                                |
//!             |  <--- status, length, text, end of stream --   |   policy: reply
//! ```
//!
//! The protocol of the C implementation ends with the update. The [`reply`] is an extension (Q16): a client that
//! continues to read learns whether its update took effect, and a client that closes the connection is not affected.
//! Requests about the [`policy`] are another extension. A server that supports them announces this.
//!
//! # Contract
//!
//! - **An update replaces whole tables.** A client edits the announced tables and sends all of them back. A table that
//!   is missing in the update becomes empty. The server applies all of the update or nothing.
//! - **Decoding accepts any bytes**: the result is a message, an error with the text of the C implementation, or the
//!   number of bytes that are needed ([`message::Decoded`]). That number is at most [`message::MAX_LEN`], or
//!   [`policy::MAX_LEN`] for requests.
//! - **Rules are checked one by one** while decoding. Decoding does not check whether rules conflict:
//!   [`engine::forward::Table::add`] does.
//! - **Numbers are in network byte order** on the wire, and in host byte order in the types.
//!
//! # Example
//!
//! ```
//! use control::message::{Announced, Capabilities, Decoded, Pif, Update};
//! use control::message::{decode_announcement, decode_update, encode_announcement, encode_update};
//! use control::reply::{self, Reply};
//!
//! // The server announces a table without rules.
//! let capabilities = Capabilities::IPV4 | Capabilities::TCP;
//! let tables = vec![Announced { pif: Pif::HOST, name: "HOST".into(), capabilities, rules: vec![] }];
//! let bytes = encode_announcement(&tables);
//! assert_eq!(decode_announcement(&bytes)?, Decoded::Whole(tables));
//!
//! // For a part of a message, the result is the number of bytes that the next attempt needs.
//! assert_eq!(decode_announcement(&bytes[..4])?, Decoded::Needs(20));
//!
//! // The client sends the table back.
//! let update = Update(vec![(Pif::HOST, vec![])]);
//! assert_eq!(decode_update(&encode_update(&update))?, Decoded::Whole(update));
//!
//! // The server refuses, and the client reads why.
//! let bytes = reply::encode(Err("port 80 is in use"));
//! assert_eq!(reply::read(&bytes[..])?, Reply::Refused("port 80 is in use".into()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod edit;
pub mod message;
pub mod policy;
pub mod reply;
