package sink

import (
	"sync"
	"time"
)

// A lane halts when the database refuses more than brakeRecords of its records within brakeWindow, and of the batch at hand more than one
// in brakeShare: that is no fault of single records any more, but of the schema or of a producer.
const (
	brakeWindow  = time.Minute
	brakeRecords = 100
	brakeShare   = 10
)

// brake remembers what the database refused lately and is stored in quarantine, lane by lane. The zero value is ready for use, by
// many lanes at once.
type brake struct {
	mu    sync.Mutex
	lanes map[int32][]refusals // the oldest first
}

// refusals are the records of one batch that the database refused.
type refusals struct {
	at      time.Time
	records int
}

// trips reports whether refused records, of a batch of so many in all, are too many by both measures.
func (b *brake) trips(lane int32, now time.Time, refused, records int) bool {
	return refused*brakeShare > records && refused+b.recent(lane, now) > brakeRecords
}

// recent returns how many records of the lane were refused within the window.
func (b *brake) recent(lane int32, now time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, r := range b.lanes[lane] {
		if now.Sub(r.at) <= brakeWindow {
			n += r.records
		}
	}
	return n
}

// add remembers the refused records of a stored batch, and forgets what is older than the window, of every lane.
func (b *brake) add(lane int32, now time.Time, records int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l, all := range b.lanes {
		for len(all) > 0 && now.Sub(all[0].at) > brakeWindow {
			all = all[1:]
		}
		if b.lanes[l] = all; len(all) == 0 {
			delete(b.lanes, l)
		}
	}
	if records == 0 {
		return
	}
	if b.lanes == nil {
		b.lanes = map[int32][]refusals{}
	}
	b.lanes[lane] = append(b.lanes[lane], refusals{now, records})
}
