// Package sample invents believable audit events of a group of clinics, for
// `auditsink produce`, `auditsink dev` and benchmarks. It is pure: the seed and
// the times come from the caller, and the same seed with the same times gives
// the same events.
package sample

import (
	"math/rand/v2"
	"time"

	"auditsink/hashing"
)

// spread is how long before the caller's now an event may have happened.
const spread = 2 * time.Second

// Generator invents events one after the other. It isn't safe for concurrent
// use: one goroutine owns it.
type Generator struct {
	rng     *rand.Rand
	text    []byte // the event being written
	prehash []byte
	stamp   []byte
	fields  hashing.Fields
	hashAll bool
	prompt  bool
	flat    bool
}

// New returns a generator whose events depend on nothing but the seed and the
// times given to Next.
func New(seed uint64) *Generator {
	//nolint:gosec // G404: sample data has to be repeatable, not secret.
	return &Generator{rng: rand.New(rand.NewPCG(seed, 0x61756469747369))}
}

// HashAll lets every event carry its hash from now on. Otherwise one in four
// does.
func (g *Generator) HashAll() { g.hashAll = true }

// Flat lets what has no column of its own be one text from now on, the member
// context: the same members, as JSON within JSON.
func (g *Generator) Flat() { g.flat = true }

// Prompt lets every event happen at the time that is given to Next from now on.
func (g *Generator) Prompt() { g.prompt = true }

// Next invents one event that happened up to two seconds before now. The value
// is a valid event, about 600 bytes of JSON; the key is its organization or,
// where it has none, its correlation id. Both are the caller's to keep.
func (g *Generator) Next(now time.Time) (key, value []byte) {
	g.text = g.text[:0]
	k := g.event(now)
	// One allocation for both: producers keep them until the broker answers.
	both := make([]byte, 0, len(k)+len(g.text))
	both = append(append(both, k...), g.text...)
	return both[:len(k):len(k)], both[len(k):]
}

// event writes one event to g.text and returns its key, which may point into
// g.text.
func (g *Generator) event(now time.Time) (key []byte) {
	r := g.rng
	s := pickScenario(r)
	c := &clinics[r.IntN(len(clinics))]
	f := &g.fields
	*f = hashing.Fields{}

	happened := now.Add(-time.Duration(r.Int64N(int64(spread))))
	if g.prompt {
		happened = now
	}
	g.stamp = hashing.AppendTimestamp(g.stamp[:0], happened.UnixMicro())
	f.Timestamp = g.stamp

	status, outcome := "success", s.success
	switch p := r.IntN(100); {
	case p < s.failures:
		status, outcome = "failure", pick(r, s.failure)
	case s.failures > 0 && p < s.failures+3:
		status, outcome = "attempt", ""
	}

	b := append(g.text, `{"timestamp":"`...)
	b = append(b, g.stamp...)
	b = append(b, `","action":"`...)
	from := len(b)
	b = append(b, s.action...)
	f.Action = b[from:]
	b = append(b, `","status":"`...)
	from = len(b)
	b = append(b, status...)
	f.Status = b[from:]

	b = append(b, `","principalId":"`...)
	from = len(b)
	b = appendPrincipal(b, r, s.actor)
	f.PrincipalID = b[from:]

	// A sign-in that fails has no organization yet.
	if !s.anonymous || status == "success" {
		b = append(b, `","organizationId":"`...)
		from = len(b)
		b = append(b, c.organization...)
		f.OrganizationID = b[from:]
	}
	if s.resource != "" {
		b = append(b, `","targetResourceType":"`...)
		from = len(b)
		b = append(b, s.resource...)
		f.TargetResourceType = b[from:]
		b = append(b, `","targetResourceId":"`...)
		from = len(b)
		b = append(b, s.prefix...)
		b = appendDigits(b, r.Uint64N(10_000_000), 8)
		f.TargetResourceID = b[from:]
	}
	if outcome != "" && r.IntN(3) > 0 {
		b = append(b, `","outcomeDescription":"`...)
		from = len(b)
		b = append(b, outcome...)
		f.OutcomeDescription = b[from:]
	}
	b = append(b, `","correlationId":"`...)
	from = len(b)
	b = appendUUID(b, r)
	correlation := b[from:]
	if r.IntN(4) == 0 || g.hashAll { // some producers hash their events, most don't
		g.prehash = hashing.AppendPrehash(g.prehash[:0], f)
		b = append(b, `","hashAlgorithm":"SHA-256","hash":"`...)
		b = appendHexSum(b, g.prehash)
	}
	if r.IntN(3) == 0 {
		b = append(b, `","eventVersion":"1.0`...)
	}
	b = append(b, `","dataClassification":"`...)
	b = append(b, s.class...)
	b = append(b, '"')
	if r.IntN(2) == 0 {
		b = append(b, `,"retentionPolicy":`...)
		b = append(b, s.retention...)
	}
	if r.IntN(2) == 0 {
		b = append(b, `,"processingLatency":`...)
		b = appendDigits(b, r.Uint64N(80), 1)
	}
	from = len(b)
	b = appendSession(b, r)
	b = appendContext(b, r, c, s)
	if g.flat {
		b = flatten(b, from)
	}
	g.text = append(b, '}')

	if f.OrganizationID != nil {
		return f.OrganizationID
	}
	return correlation
}
