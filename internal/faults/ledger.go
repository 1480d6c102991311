package faults

import (
	"crypto/sha256"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// incarnation is one life of a topic: one that is deleted and made again has another ID.
type incarnation struct {
	topic string
	id    [16]byte
}

// ledger is what a load has sent into one incarnation of a topic. It is safe for concurrent use.
type ledger struct {
	into incarnation

	mu      sync.Mutex
	records map[[sha256.Size]byte]*record // by the hash of their bytes, which are unlike any other's
	acked   int
}

func newLedger(into incarnation) *ledger {
	return &ledger{into: into, records: map[[sha256.Size]byte]*record{}}
}

// identity tells a record by its bytes.
func identity(r *kgo.Record) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(r.Key, []byte{0, 0}, r.Value))
}

// add notes a record before it is sent.
func (l *ledger) add(r *record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[identity(r.kgo)] = r
}

// answer notes what the broker answered. tentative acknowledgements, those inside a transaction, wait for its end.
func (l *ledger) answer(r *record, tentative bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		r.fate = uncertain
	case tentative:
		r.offset = r.kgo.Offset
	default:
		r.fate, r.offset = acknowledged, r.kgo.Offset
		l.acked++
	}
}

// settle notes the end of the transaction that holds these records.
func (l *ledger) settle(records []*record, f fate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		if r.offset < 0 { // it wasn't acknowledged in the first place
			r.fate = uncertain
			continue
		}
		r.fate = f
		if f == acknowledged {
			l.acked++
		}
	}
}

// count is how many are acknowledged.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// sent returns all records.
func (l *ledger) sent() []*record {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*record, 0, len(l.records))
	for _, r := range l.records {
		all = append(all, r)
	}
	return all
}

// find returns the record of these bytes, or nil for a stranger's.
func (l *ledger) find(r *kgo.Record) *record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[identity(r)]
}
