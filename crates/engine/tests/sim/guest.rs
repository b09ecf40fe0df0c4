//! A guest with another TCP implementation (smoltcp) and one application.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant,
    wire::{EthernetAddress, IpCidr, IpEndpoint},
};
use wire::ethernet;

use crate::application::Application;
use testkit::{
    settings::GUEST_MAC,
    streams::{DOWNWARD, UPWARD},
};

/// Frames to and from the guest's stack.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) mtu: usize,
    pub(crate) received: VecDeque<Vec<u8>>,
    pub(crate) sent: Vec<Vec<u8>>,
}

pub(crate) struct Received(Vec<u8>);
pub(crate) struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.received.pop_front()?), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ethernet::HEADER_LEN;
        capabilities
    }
}

/// The guest.
pub(crate) struct Guest {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(crate) application: Application,
    /// Whether the engine's FIN has arrived. The application may read what came before it later.
    fin_seen: bool,
}

impl Guest {
    /// A guest with one TCP socket with buffers of `receive` and `send` bytes.
    pub(crate) fn new(
        address: IpAddr,
        mtu: usize,
        (receive, send): (usize, usize),
        application: Application,
        seed: u64,
    ) -> Self {
        let mut device = Device { mtu, received: VecDeque::new(), sent: Vec::new() };
        let mut config = Config::new(EthernetAddress(GUEST_MAC.0).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        let prefix_len = if address.is_ipv4() { 24 } else { 64 };
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(address.into(), prefix_len));
        });
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(tcp::Socket::new(buffer(receive), buffer(send)));
        Self { device, interface, sockets, handle, application, fin_seen: false }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn connect(&mut self, remote: SocketAddr, local_port: u16) {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
        let remote = IpEndpoint::from(remote);
        socket.connect(self.interface.context(), remote, local_port).expect("the guest can connect");
    }

    pub(crate) fn listen(&mut self, port: u16) {
        self.socket().listen(port).expect("the guest can listen");
    }

    /// Whether bytes that the engine has sent wait for the application.
    pub(crate) fn has_unread(&mut self) -> bool {
        self.socket().can_recv()
    }

    pub(crate) fn deliver(&mut self, frame: Vec<u8>) {
        self.device.received.push_back(frame);
    }

    /// Runs the guest's stack and application as far as possible. Returns the frames that they have sent.
    pub(crate) fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        let at = Instant::from_micros(now as i64);
        self.run_application(now);
        self.interface.poll(at, &mut self.device, &mut self.sockets);
        if self.run_application(now) {
            self.interface.poll(at, &mut self.device, &mut self.sockets);
        }
        std::mem::take(&mut self.device.sent)
    }

    /// The time of the next poll, if no frame arrives before.
    pub(crate) fn next(&mut self, now: u64) -> Option<u64> {
        let at = Instant::from_micros(now as i64);
        let stack = self.interface.poll_at(at, &self.sockets).map(|at| at.total_micros() as u64);
        [stack, self.application.next(now)].into_iter().flatten().min()
    }

    /// Reads and writes the application's data. Returns whether the state has changed.
    fn run_application(&mut self, now: u64) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.handle);
        let application = &mut self.application;
        let mut active = false;
        while socket.can_recv() && application.may_read(now) > 0 {
            let at_most = application.may_read(now);
            let position = application.received as u32;
            let read = socket.recv(|bytes| {
                let len = bytes.len().min(at_most as usize);
                DOWNWARD.check(position, &bytes[..len]);
                (len, len as u64)
            });
            application.was_read(read.expect("an open socket"), now);
            active = true;
        }
        self.fin_seen |= matches!(
            socket.state(),
            tcp::State::CloseWait | tcp::State::Closing | tcp::State::LastAck | tcp::State::TimeWait
        );
        application.ended |= self.fin_seen && !socket.can_recv();
        while socket.can_send() && application.to_send() > 0 {
            let position = application.sent as u32;
            let at_most = application.to_send();
            let sent = socket.send(|room| {
                let len = room.len().min(at_most as usize);
                UPWARD.fill(position, &mut room[..len]);
                (len, len as u64)
            });
            application.sent += sent.expect("an open socket");
            active = true;
        }
        if socket.may_send() && application.wants_to_close() {
            application.closed = true;
            socket.close();
            active = true;
        }
        active
    }

    pub(crate) fn abort(&mut self) {
        self.socket().abort();
    }

    pub(crate) fn state(&mut self) -> tcp::State {
        self.socket().state()
    }
}
