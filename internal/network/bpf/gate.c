// The gate of a VM's port: what may pass between a tap device and the world.
//
// Four programs share three maps. to_guest and from_guest sit at the two
// directions of a tap, from_tunnel at the ingress of the migration tunnel
// device, seal at both directions of an overlay's bridge device. All are tc
// classifiers in direct-action mode: their verdict is final, and they stay
// attached without any process.
//
// A tap without an entry in the map of gates passes nothing.

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

// The modes; their meaning is documented at Mode in gate.go.
enum {
	MODE_PASS = 1,
	MODE_CLOSED = 2,
	MODE_TUNNEL_ONLY = 3,
	MODE_REDIRECT = 4,
	MODE_SETTLING = 5,
	MODE_LEAVING = 6,
	MODE_ARRIVING = 7,
	MODE_RETURNING = 8,
};

enum {
	MAX_TAPS = 4096,
	ETH_ADDRESSES = 12, // destination and source at the head of a frame
	FIRST_TTL = 64,

	MAX_GROUP_FRAMES = 16384, // that are remembered, those of all taps
	WORD = 8,                 // bytes, of their fingerprints

	DRAINED = 0x67774472, // the mark of what Drain sends
};

// For one to two of these a copy of a group frame is remembered.
#define PERIOD_NS 1000000000ull

// The part of a gate that decides about a frame.
struct rule {
	__u32 mode;
	__u32 tunnel;    // VXLAN network identifier to redirect with
	__u32 remote[4]; // IPv4 in remote[0] in host order; IPv6 in network order
	__u8 mac[6];     // of the guest
	__u8 unused[2];
};

// The lock makes a change of the whole gate one step: a frame is judged by
// the old gate or by the new one, never by a mixture.
struct gate {
	struct bpf_spin_lock lock;
	struct rule rule;
	__u64 epoch; // not read here; kept for an agent that starts again
};

struct counters {
	__u64 to_guest_passed;
	__u64 to_guest_redirected;
	__u64 to_guest_dropped;
	__u64 from_guest_passed;
	__u64 from_guest_dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TAPS);
	__type(key, __u32); // interface index of the tap
	__type(value, struct gate);
} gw_gates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TAPS);
	__type(key, __u32);   // VXLAN network identifier
	__type(value, __u32); // interface index of the tap
} gw_tunnels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_TAPS);
	__type(key, __u32); // interface index of the tap
	__type(value, struct counters);
} gw_counters SEC(".maps");

// When a unicast frame from outside of the host was last redirected, by the monotonic
// clock in nanoseconds.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TAPS);
	__type(key, __u32); // interface index of the tap
	__type(value, __u64);
} gw_redirected SEC(".maps");

// Which copies of a frame to all have come without the other one: above zero those
// that came directly, below zero those by the tunnel.
struct copies {
	__u64 period;
	__s32 unmatched[2]; // of this period, and of the one before
};

struct group_frame {
	__u32 ifindex; // of the tap
	__u32 unused;
	__u64 fingerprint;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_GROUP_FRAMES);
	__type(key, struct group_frame);
	__type(value, struct copies);
} gw_groups SEC(".maps");

// Set when the programs are loaded.
volatile const __u32 tunnel_ifindex;
volatile const __u32 underlay_is_ipv6;
volatile const __u32 underlay[4]; // as rule.remote

// The gate of the interface, with its rule; 0 if it has none.
static __always_inline struct gate *read_rule(__u32 ifindex, struct rule *rule)
{
	struct gate *gate = bpf_map_lookup_elem(&gw_gates, &ifindex);

	if (!gate)
		return 0;
	bpf_spin_lock(&gate->lock);
	*rule = gate->rule;
	bpf_spin_unlock(&gate->lock);
	return gate;
}

#define COUNT(ifindex, field)                                                  \
	do {                                                                   \
		__u32 index = (ifindex);                                       \
		struct counters *counters =                                    \
			bpf_map_lookup_elem(&gw_counters, &index);             \
		if (counters)                                                  \
			counters->field++;                                     \
	} while (0)

static __always_inline __u64 tunnel_family_flag(void)
{
	return underlay_is_ipv6 ? BPF_F_TUNINFO_IPV6 : 0;
}

// A frame keeps the index of the interface it was received on until it leaves
// the host. The tunnel device is in no bridge, and all it receives is
// redirected by from_tunnel; so nothing that a bridge or a local program sends
// to a tap can look as if it came by the tunnel.
static __always_inline bool came_by_tunnel(const struct __sk_buff *skb)
{
	return skb->ingress_ifindex == tunnel_ifindex;
}

// Sends the frame to the rule's remote host. A frame that came by a tunnel may
// go on by another one (a VM that moves again while stragglers of its last
// move still arrive), never back by the same; the outer TTL bounds any loop
// among several hosts.
static __always_inline int redirect(struct __sk_buff *skb, const struct rule *rule)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = underlay_is_ipv6 ? BPF_F_TUNINFO_IPV6 : BPF_F_ZERO_CSUM_TX;
	__u8 ttl = FIRST_TTL;

	if (came_by_tunnel(skb)) {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), tunnel_family_flag()) < 0)
			return TC_ACT_SHOT;
		if (key.tunnel_id == rule->tunnel || key.tunnel_ttl <= 1)
			return TC_ACT_SHOT;
		ttl = key.tunnel_ttl - 1;
	}
	__builtin_memset(&key, 0, sizeof(key));
	key.tunnel_id = rule->tunnel;
	key.tunnel_ttl = ttl;
	if (underlay_is_ipv6) {
		for (int i = 0; i < 4; i++) {
			key.remote_ipv6[i] = rule->remote[i];
			key.local_ipv6[i] = underlay[i];
		}
	} else {
		key.remote_ipv4 = rule->remote[0];
		key.local_ipv4 = underlay[0];
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) < 0)
		return TC_ACT_SHOT;
	if (skb->mark == DRAINED)
		skb->mark = 0; // which the host's own rules could heed
	return bpf_redirect(tunnel_ifindex, 0);
}

// A frame of the host's own programs has no interface that it came by, and one of a
// guest here has a tap.
static __always_inline void note_redirect(const struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, from = skb->ingress_ifindex;
	__u64 now = bpf_ktime_get_ns();
	__u64 *last;

	if (!from || bpf_map_lookup_elem(&gw_gates, &from))
		return;
	last = bpf_map_lookup_elem(&gw_redirected, &ifindex);
	if (last)
		*last = now;
	else
		bpf_map_update_elem(&gw_redirected, &ifindex, &now, BPF_ANY);
}

// A guest must not hear itself. It would when its own broadcast, sent at the
// new host, reaches the old one and is forwarded; duplicate address detection
// then takes the guest for its own rival.
static __always_inline bool sent_by_guest(const __u8 *addresses, const struct rule *rule)
{
	for (int i = 0; i < 6; i++)
		if (addresses[6 + i] != rule->mac[i])
			return false;
	return true;
}

static __always_inline __u64 mix(__u64 word, __u64 at)
{
	word = (word ^ (at + 1) * 0x9e3779b97f4a7c15ull) * 0xff51afd7ed558ccdull;
	word ^= word >> 32;
	return word * 0xc4ceb9fe1a85ec53ull;
}

// Where the checksum of a UDP datagram is; 0 if the frame has none.
static __always_inline __u32 udp_checksum_at(struct __sk_buff *skb)
{
	enum { ETH = 14, TYPE_AT = 12, IPV6_HEADER = 40, CHECKSUM_AT = 6 };
	__u8 type[2], ip[10];

	if (bpf_skb_load_bytes(skb, TYPE_AT, type, sizeof(type)) < 0 ||
	    bpf_skb_load_bytes(skb, ETH, ip, sizeof(ip)) < 0)
		return 0;
	if (type[0] == 0x08 && type[1] == 0x00 && ip[9] == IPPROTO_UDP && !(ip[6] & 0x1f) && !ip[7])
		return ETH + (ip[0] & 0xf) * 4 + CHECKSUM_AT; // of the first fragment
	if (type[0] == 0x86 && type[1] == 0xdd && ip[6] == IPPROTO_UDP)
		return ETH + IPV6_HEADER + CHECKSUM_AT;
	return 0;
}

struct hashed {
	struct __sk_buff *skb;
	__u64 sum;
	__u32 checksum_at;
};

// Adds one word of a frame to its fingerprint. Zeros count for nothing, wherever a
// frame ends.
static long hash_word(__u32 index, void *context)
{
	struct hashed *hashed = context;
	__u32 at = index * WORD, length = hashed->skb->len - at;
	__u64 word = 0;
	__u8 *bytes = (__u8 *)&word;

	length = length < WORD ? ((length - 1) & (WORD - 1)) + 1 : WORD; // at least 1, as the kernel sees
	if (bpf_skb_load_bytes(hashed->skb, at, bytes, length) < 0)
		return 1;
	// Headers have even lengths, of four bytes each but for Ethernet's, which leaves
	// two: the checksum, six bytes on, begins a word or its second half.
	if (hashed->checksum_at == at)
		bytes[0] = bytes[1] = 0;
	else if (hashed->checksum_at == at + WORD / 2)
		bytes[4] = bytes[5] = 0;
	if (word)
		hashed->sum += mix(word, at);
	return 0;
}

// The two copies of a frame can differ in what is not the sender's: network cards
// fill short frames up with zeros, and a sender's kernel leaves the checksum of UDP
// to a card that may never come. So neither counts.
static __always_inline __u64 fingerprint(struct __sk_buff *skb)
{
	struct hashed hashed = {.skb = skb, .checksum_at = udp_checksum_at(skb)};

	bpf_loop((skb->len + WORD - 1) / WORD, hash_word, &hashed, 0);
	return hashed.sum;
}

static __always_inline struct copies *copies_of(struct __sk_buff *skb)
{
	struct group_frame frame = {.ifindex = skb->ifindex, .fingerprint = fingerprint(skb)};
	struct copies none = {}, *copies = bpf_map_lookup_elem(&gw_groups, &frame);

	if (copies)
		return copies;
	bpf_map_update_elem(&gw_groups, &frame, &none, BPF_NOEXIST); // or another processor has
	return bpf_map_lookup_elem(&gw_groups, &frame);
}

// While a source forwards, a frame to all comes twice: directly and by the tunnel, in
// either order. The first copy counts; it is matched by the next one that comes the
// other way. Of equal frames each one is matched.
static __always_inline bool first_copy(struct __sk_buff *skb, struct gate *gate)
{
	__s32 way = came_by_tunnel(skb) ? -1 : 1;
	__u64 period = bpf_ktime_get_ns() / PERIOD_NS;
	struct copies *copies = copies_of(skb);
	bool first = false;

	if (!copies)
		return true;
	bpf_spin_lock(&gate->lock);
	if (period > copies->period) {
		copies->unmatched[1] = period == copies->period + 1 ? copies->unmatched[0] : 0;
		copies->unmatched[0] = 0;
		copies->period = period;
	}
	if (copies->unmatched[1] * way < 0) {
		copies->unmatched[1] += way;
	} else {
		first = copies->unmatched[0] * way >= 0;
		copies->unmatched[0] += way;
	}
	bpf_spin_unlock(&gate->lock);
	return first;
}

// Before the commit a frame to all counts only if it comes by the tunnel, as the source
// has sent it on; afterwards its first copy does. Of large segments, which one way may
// split and the other not, it stays the tunnel's.
static __always_inline bool takes(struct __sk_buff *skb, struct gate *gate, __u32 mode, bool group)
{
	bool tunnel_only = mode == MODE_TUNNEL_ONLY || (group && (mode == MODE_ARRIVING || skb->gso_size));

	if (tunnel_only && !came_by_tunnel(skb))
		return false;
	return !group || first_copy(skb, gate);
}

static __always_inline int judge_to_guest(struct __sk_buff *skb, struct gate *gate, const struct rule *rule)
{
	__u8 addresses[ETH_ADDRESSES];
	bool group;

	if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)) < 0)
		return TC_ACT_SHOT;
	if (sent_by_guest(addresses, rule))
		return TC_ACT_SHOT;
	group = addresses[0] & 1;
	switch (rule->mode) {
	case MODE_PASS:
		return TC_ACT_OK;
	case MODE_TUNNEL_ONLY:
	case MODE_ARRIVING:
	case MODE_SETTLING:
		return takes(skb, gate, rule->mode, group) ? TC_ACT_OK : TC_ACT_SHOT;
	case MODE_RETURNING:
		if (group && skb->mark != DRAINED && !came_by_tunnel(skb))
			return TC_ACT_SHOT;
		return redirect(skb, rule);
	case MODE_REDIRECT:
	case MODE_LEAVING:
		if (!group)
			note_redirect(skb);
		return redirect(skb, rule);
	default:
		return TC_ACT_SHOT;
	}
}

SEC("tc")
int to_guest(struct __sk_buff *skb)
{
	struct rule rule;
	struct gate *gate = read_rule(skb->ifindex, &rule);
	int verdict;

	if (!gate)
		return TC_ACT_SHOT;
	verdict = judge_to_guest(skb, gate, &rule);
	if (verdict == TC_ACT_OK)
		COUNT(skb->ifindex, to_guest_passed);
	else if (verdict == TC_ACT_REDIRECT)
		COUNT(skb->ifindex, to_guest_redirected);
	else
		COUNT(skb->ifindex, to_guest_dropped);
	return verdict;
}

SEC("tc")
int from_guest(struct __sk_buff *skb)
{
	struct rule rule;

	if (!read_rule(skb->ifindex, &rule))
		return TC_ACT_SHOT;
	switch (rule.mode) {
	case MODE_PASS:
	case MODE_SETTLING:
	case MODE_LEAVING:
		COUNT(skb->ifindex, from_guest_passed);
		return TC_ACT_OK;
	default:
		COUNT(skb->ifindex, from_guest_dropped);
		return TC_ACT_SHOT;
	}
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	__u32 *tap;
	__u32 id;

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), tunnel_family_flag()) < 0)
		return TC_ACT_SHOT;
	id = key.tunnel_id;
	tap = bpf_map_lookup_elem(&gw_tunnels, &id);
	if (!tap)
		return TC_ACT_SHOT;
	return bpf_redirect(*tap, 0);
}

// Guests and the host's own network stack stay strangers: the bridge device
// neither gives frames to the stack nor takes any from it.
SEC("tc")
int seal(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

char __license[] SEC("license") = "GPL";
