//! The event loop: one epoll set, one link, one stack of flows.
