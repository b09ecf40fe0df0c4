//! A tree of keys that contain each other (prefixes or names), with the rules of each key. Finds all keys that cover
//! one address or name.
//!
//! The keys are sorted such that each key comes before the keys that it covers. So the keys that cover a value form a
//! chain. The last key that is not after the value may cover the value. All other keys that cover the value cover this
//! key, too, so they are found by going upwards from this key.

use alloc::vec::Vec;

/// Sorted keys. Each key has the index of the key above it and the indexes of its rules.
#[derive(Clone, Debug)]
pub(super) struct Tree<K> {
    keys: Vec<K>,
    nodes: Vec<Node>,
    /// Indexes of rules. The indexes of one node are adjacent and in order.
    rules: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    /// The index of the closest key that covers this key.
    above: Option<u32>,
    /// The offset at which this node's rules begin. They end at the offset of the next node's rules.
    rules: u32,
}

impl<K: Ord> Tree<K> {
    /// Builds a tree. The order of `K` must put each key before the keys that it covers, and must put no other key
    /// between them.
    pub(super) fn new(mut entries: Vec<(K, u32)>, covers: impl Fn(&K, &K) -> bool) -> Self {
        entries.sort_unstable();
        let mut tree = Self { keys: Vec::new(), nodes: Vec::new(), rules: Vec::with_capacity(entries.len()) };
        let mut chain: Vec<u32> = Vec::new();
        for (key, rule) in entries {
            if tree.keys.last() != Some(&key) {
                while chain.pop_if(|above| !covers(&tree.keys[*above as usize], &key)).is_some() {}
                tree.nodes.push(Node { above: chain.last().copied(), rules: tree.rules.len() as u32 });
                chain.push(tree.keys.len() as u32);
                tree.keys.push(key);
            }
            tree.rules.push(rule);
        }
        tree
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys with their rules, from the last key that is not after a value, upwards. All keys that cover the value
    /// are among them.
    pub(super) fn chain(&self, not_after: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &[u32])> {
        let last = self.keys.partition_point(not_after).checked_sub(1);
        core::iter::successors(last, |at| self.nodes[*at].above.map(|above| above as usize))
            .map(|at| self.entry(at))
    }

    /// The keys with their rules that come after a value, in order. The keys that the value covers come first.
    pub(super) fn after(&self, not_after: impl Fn(&K) -> bool) -> impl Iterator<Item = (&K, &[u32])> {
        (self.keys.partition_point(not_after)..self.keys.len()).map(|at| self.entry(at))
    }

    fn entry(&self, at: usize) -> (&K, &[u32]) {
        let end = self.nodes.get(at + 1).map_or(self.rules.len(), |next| next.rules as usize);
        (&self.keys[at], &self.rules[self.nodes[at].rules as usize..end])
    }
}
