package consumer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/event"
	"auditsink/sink"
)

// recordOverhead is what a buffered record costs beside its own bytes: our struct, and its share of slices.
const recordOverhead = 128

// headerOverhead is the same for a header.
const headerOverhead = 48

// limits say when a lane's records become a batch.
type limits struct {
	rows  int
	bytes int64
	// interval is the age by which records are to be stored, not only begun with: see [lane.due].
	interval time.Duration
}

// phase is where a lane is in its life.
type phase uint8

const (
	waiting phase = iota // for its claim
	running
	draining // no more records come in; what is buffered is being stored
	halted   // until an operator acts; records are dropped, for nothing is lost that isn't committed
)

// lane is one partition of a topic as owned by this worker. The poll loop puts records in, and the lane's own goroutine
// takes them out and stores them; mu guards what both touch. cancel ends the goroutine at once, done tells that it has ended.
type lane struct {
	id     sink.Lane
	limits limits
	// tap lets the client fetch the lane, or not. It is called with mu held, so that calls come in the order of what they follow from.
	tap    func(open bool)
	ctx    context.Context // the lane's life, which no caller's context spans
	cancel context.CancelFunc
	done   chan struct{}
	// wake holds at most one signal for the lane's goroutine: look again.
	wake chan struct{}

	mu    sync.Mutex
	phase phase
	why   string     // what a waiting, halted or stalled lane waits for
	claim sink.Claim // claim.Next is the position: all before it is stored
	queue []fetched
	rows  int
	// gone says that the lane was given up: its pauses are no longer its own business.
	gone bool
	// astray is why the broker doesn't give what comes next, or nil. The lane stays paused until its goroutine has found out more.
	astray error
	// faults counts how often in a row that was so, and faulted is when last.
	faults  int
	faulted time.Time
	// unknown is since when the brokers have not known the lane, or zero.
	unknown time.Time
	// topicID is that of the claim.
	topicID [16]byte
	// suspect says what is wrong with the position in Postgres, until the lane's goroutine has seen to it.
	suspect error
	// bytes counts what is queued and what is in the batch being stored; share is what the lane may hold before it is paused.
	bytes, share int64
	paused       bool
	// reached is the offset behind the last record received, of whatever kind; leaderEpoch is that record's.
	reached     int64
	leaderEpoch int32
	// since is when the oldest of what is queued arrived; oldest is the timestamp of the oldest record not stored, in ms, or -1.
	since  time.Time
	oldest int64
	// flushing is when the batch under way was begun, or zero; took is how long batches have been taking to be stored.
	flushing time.Time
	took     time.Duration
	// committed is the offset that Kafka knows.
	committed int64
	// newest is the timestamp of the last record stored since there was no lag, in ms, or -1; behind is when that was, or when the lag was first seen.
	newest int64
	behind time.Time
	// batch is reused from flush to flush by the lane's goroutine alone.
	batch []event.Record
}

// fetched are records of one leader epoch that came with one fetch.
type fetched struct {
	records     []event.Record
	arrived     time.Time
	leaderEpoch int32
}

// newLane makes a lane that waits for its claim. It lives until life ends or it is given up.
func newLane(life context.Context, id sink.Lane, l limits, tap func(open bool)) *lane {
	ctx, cancel := context.WithCancel(life)
	return &lane{
		id: id, limits: l, tap: tap, ctx: ctx, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1),
		claim: sink.Claim{Next: -1}, reached: -1, oldest: -1, newest: -1, committed: -1,
	}
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// put takes records over from a fetch, and pauses the lane when it is over its share. It never blocks. It returns what was taken.
func (l *lane) put(records []*kgo.Record, now time.Time) (rows int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase != running || len(records) == 0 {
		return 0, 0
	}
	before := l.reached
	taken := make([]event.Record, 0, len(records))
	from := 0 // of taken, the records of one leader epoch
	for _, r := range records {
		if r.Offset < l.reached {
			continue // a fetch may begin in the middle of what the broker stores as one
		}
		if r.LeaderEpoch != l.leaderEpoch {
			l.enqueue(taken[from:], now)
			from = len(taken)
		}
		l.reached, l.leaderEpoch = r.Offset+1, r.LeaderEpoch
		if r.Attrs.IsControl() {
			continue // it moves the position, and is no event
		}
		rec := event.Record{Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, event.Header{Key: h.Key, Value: h.Value})
		}
		bytes += cost(&rec)
		taken = append(taken, rec)
	}
	l.enqueue(taken[from:], now)
	if l.since.IsZero() && l.reached > before { // else there is nothing to be stored yet
		l.since = now
	}
	l.bytes += bytes
	l.faults = 0
	l.signal()
	if l.bytes > l.share && !l.paused {
		l.pause(true)
	}
	return len(taken), bytes
}

// enqueue queues records of the leader epoch reached. l.mu is held.
func (l *lane) enqueue(records []event.Record, now time.Time) {
	if len(records) == 0 {
		return
	}
	l.queue = append(l.queue, fetched{records, now, l.leaderEpoch})
	l.rows += len(records)
	if l.oldest < 0 {
		l.oldest = records[0].Timestamp
	}
}

// pause stops or resumes fetching. l.mu is held.
func (l *lane) pause(on bool) {
	if l.paused = on; !l.gone {
		l.tap(!on)
	}
}

func cost(r *event.Record) int64 {
	n := len(r.Key) + len(r.Value) + recordOverhead
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value) + headerOverhead
	}
	return int64(n)
}

// Why next returns no batch, beside what is wrong with the position.
var (
	errAstray = errors.New("the broker doesn't give the next record")
	errHalted = errors.New("the lane has halted")
)

// next waits until a batch is due: full in rows or bytes, old enough, or the lane draining or astray. Without a batch it returns what is wrong
// with the lane, or nil where it is to end.
func (l *lane) next(ctx context.Context) (*sink.Batch, error) {
	for {
		l.mu.Lock()
		wait, due := l.due(time.Now())
		if due {
			b := l.cut()
			l.mu.Unlock()
			return b, nil
		}
		trouble, ended := l.trouble(), l.phase == draining
		l.mu.Unlock()
		if trouble != nil || ended {
			return nil, trouble
		}
		select {
		case <-ctx.Done():
			return nil, nil //nolint:nilnil // neither is the answer: the lane is to end
		case <-l.wake:
		case <-time.After(wait):
		}
	}
}

// trouble is what the lane's goroutine has to see to while no batch is due. l.mu is held.
func (l *lane) trouble() error {
	switch {
	case l.phase == halted:
		return errHalted
	case l.phase == running && l.suspect != nil:
		return l.suspect
	case l.phase == running && l.astray != nil:
		return errAstray
	}
	return nil
}

// stray pauses a lane of which the broker doesn't give the next record. What is buffered is stored first.
func (l *lane) stray(why error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase != running || l.astray != nil {
		return
	}
	if now.Sub(l.faulted) > time.Minute {
		l.faults = 0
	}
	l.astray, l.faulted = why, now
	l.faults++
	l.pause(true)
	l.signal()
}

// fault is why the lane is astray, and how often in a row it has been.
func (l *lane) fault() (times int, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults, l.astray
}

// check holds the lane against what Postgres says of it, read since the lane had that claim. A lane that has moved on meanwhile, or is about
// to, is left alone: it finds out by itself.
func (l *lane) check(had sink.Claim, epoch, next int64, owner string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase != running || l.claim != had || !l.flushing.IsZero() {
		return
	}
	switch {
	case epoch != had.Epoch:
		l.suspect = &sink.FencedError{Lane: had.LaneID, Epoch: epoch, Owner: owner}
	case next != had.Next:
		l.suspect = &sink.MovedError{Lane: had.LaneID, Expected: had.Next, Next: next}
	default:
		return
	}
	l.signal()
}

// due tells whether a batch is due, or how long until it will be. By age it is early enough to be stored when its oldest record is as old as the
// interval, if it takes as long as those before. l.mu is held.
func (l *lane) due(now time.Time) (time.Duration, bool) {
	if l.reached <= l.claim.Next || l.phase != running && l.phase != draining {
		return time.Hour, false
	}
	if l.rows >= l.limits.rows || l.bytes >= min(l.limits.bytes, l.share/2) || l.phase == draining || l.astray != nil {
		return 0, true
	}
	wait := l.limits.interval - l.took - now.Sub(l.since)
	return wait, wait <= 0
}

// cut takes the next batch off the queue. l.mu is held.
func (l *lane) cut() *sink.Batch {
	l.batch = l.batch[:0]
	bytes, epoch := int64(0), l.leaderEpoch
	for len(l.queue) > 0 && len(l.batch) < l.limits.rows && bytes < l.limits.bytes {
		first := l.queue[0].records
		n := 0
		for n < len(first) && len(l.batch)+n < l.limits.rows && bytes < l.limits.bytes {
			bytes += cost(&first[n])
			n++
		}
		l.batch = append(l.batch, first[:n]...)
		epoch = l.queue[0].leaderEpoch
		clear(first[:n]) // what was stored must not be kept alive by what waits behind it
		if l.queue[0].records = first[n:]; n == len(first) {
			l.queue = l.queue[1:]
		}
	}
	l.rows -= len(l.batch)
	b := &sink.Batch{Claim: l.claim, To: l.reached, LeaderEpoch: l.leaderEpoch, Records: l.batch}
	l.flushing, l.since = time.Now(), time.Time{}
	if l.rows > 0 {
		b.LeaderEpoch = epoch
		b.To = l.batch[len(l.batch)-1].Offset + 1
		l.since = l.queue[0].arrived
	}
	return b
}

// stored moves the lane on behind a batch, and resumes it when it is below half of its share. It returns the bytes set free.
func (l *lane) stored(b *sink.Batch) (bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claim.Next, l.claim.LeaderEpoch = b.To, b.LeaderEpoch
	if !l.flushing.IsZero() {
		l.learn(time.Since(l.flushing))
	}
	l.flushing = time.Time{}
	for i := range b.Records {
		bytes += cost(&b.Records[i])
		l.newest = b.Records[i].Timestamp
	}
	clear(b.Records)
	bytes = min(bytes, l.bytes) // nothing is left to be freed where the lane was given up meanwhile
	l.bytes -= bytes
	l.oldest = -1
	if len(l.queue) > 0 {
		l.oldest = l.queue[0].records[0].Timestamp
	}
	if l.paused && l.phase == running && l.astray == nil && l.bytes < l.share/2 {
		l.pause(false)
	}
	return bytes
}

// learn notes how long a batch took. What counts is the longest, which is forgotten by an eighth of the difference with each shorter one: a batch that is
// early costs little, one that is late is what the interval is there to prevent. Beyond half of the interval it counts as that, so that batches don't
// become ever smaller where Postgres can't keep up, and an outage is soon forgotten. l.mu is held.
func (l *lane) learn(took time.Duration) {
	took = min(took, l.limits.interval/2)
	l.took = max(took, l.took-(l.took-took)/8)
}

// discard drops what is buffered and not stored, so that the lane ends where it is stored. It returns how many bytes that were.
func (l *lane) discard() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	bytes := l.bytes
	l.queue, l.batch, l.rows, l.bytes = nil, nil, 0, 0
	l.reached = l.claim.Next // else the position would move over what was dropped
	l.since, l.flushing, l.oldest = time.Time{}, time.Time{}, -1
	return bytes
}

// suspend makes the lane wait or halt: nothing is fetched or taken over any more. A lane that drains only halts.
// It reports whether the phase changed.
func (l *lane) suspend(p phase, why string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == halted || l.phase == draining && p == waiting {
		return false
	}
	l.phase, l.why = p, why
	l.pause(true)
	l.signal()
	return true
}

// drain stops the lane's intake. It reports whether there may be something to be stored still.
func (l *lane) drain() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == running {
		l.phase = draining
	}
	l.signal()
	return l.phase == draining
}

// release ends the lane. A pause outlives the assignment in the client, and the lane would come back paused: so it is lifted.
func (l *lane) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause(false)
	l.gone = true
	l.cancel()
}

// place puts a lane that waits, and so has nothing buffered, where a claim says.
func (l *lane) place(c sink.Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claim, l.reached, l.leaderEpoch = c, c.Next, c.LeaderEpoch
	l.astray, l.suspect = nil, nil
}

// resume lets a lane that waits run from its position. It reports whether it did.
func (l *lane) resume() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase != waiting {
		return false
	}
	l.phase, l.why = running, ""
	l.pause(false)
	l.signal()
	return true
}

// position is the offset of the first record not stored yet, or -1 while that isn't known.
func (l *lane) position() int64 { return l.claimed().Next }

func (l *lane) claimed() sink.Claim {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.claim
}
