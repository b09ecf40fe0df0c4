//! Signals: masks, signalfd, dispositions.
