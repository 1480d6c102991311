package query

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"auditsink/internal/postgres"
	"auditsink/metrics"
)

// Options says how a [Reader] reads.
type Options struct {
	// Metrics counts what is read, and Log tells of slow queries.
	Metrics *metrics.Metrics
	Log     *zap.Logger
	// Cache keeps pages, counts and single events; nil for none.
	Cache *Cache
	// Slow is the duration from which a query is logged; 0 logs none.
	Slow time.Duration
	// Timeout bounds each question, and each chunk of an export: the look into the cache, the wait for a connection, all attempts and all statements together. 0 leaves it to
	// the caller's context.
	Timeout time.Duration
	// RetryAttempts is how often a read is tried whose connection got lost, RetryDelay the wait between the attempts.
	RetryAttempts int
	RetryDelay    time.Duration
}

// Reader reads events. It is safe for concurrent use. Pages, counts and single events come from the cache where it has them, unless the context says [Fresh].
//
// What it returns is an [InvalidError] for a question that can't be answered, [ErrNotFound], [ErrTimeout], the cause of the context's end, or an error of the database.
type Reader struct {
	pool  *postgres.Pool
	o     Options
	known atomic.Pointer[layout]
	plans plans

	pieces pieces
}

// New makes a reader on a pool, which should be of its own: ingest must not wait for reads. The caller must call Close before it closes the pool.
func New(pool *postgres.Pool, o Options) *Reader {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Reader{pool: pool, o: o, pieces: usualPieces}
}

// Close waits for what is still being logged, a few seconds at most.
func (r *Reader) Close() { r.plans.wg.Wait() }

type untilKey struct{}

// within bounds a question by the timeout, from when it was asked. That goes on to whatever is asked for its sake, also to a read that outlives its caller since others wait
// for it.
func (r *Reader) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.o.Timeout <= 0 {
		return ctx, func() {}
	}
	until, ok := ctx.Value(untilKey{}).(time.Time)
	if !ok {
		until = time.Now().Add(r.o.Timeout)
		ctx = context.WithValue(ctx, untilKey{}, until)
	}
	return context.WithDeadlineCause(ctx, until, ErrTimeout)
}

// pageBytes is about how large the events of a page or a chunk may be together. One alone may be larger.
const pageBytes = 16 << 20

// Events returns a page of at most limit events (1 to [MaxLimit]), newest first unless the filter says otherwise, that follow the cursor of the page before; the first
// page has none. A page may hold fewer events although more follow, where they are large; the last is the one without a next.
func (r *Reader) Events(ctx context.Context, scope Scope, f Filter, limit int, after string) (Page, error) {
	q, err := ask(scope, f)
	if err != nil {
		return Page{}, err
	}
	if limit < 1 || limit > MaxLimit {
		return Page{}, &InvalidError{"limit", fmt.Sprintf("must be from 1 to %d", MaxLimit)}
	}
	p, err := q.position(after)
	if err != nil {
		return Page{}, err
	}
	if q.scope.empty() {
		return Page{Events: []Event{}}, nil
	}
	return cached(ctx, r, pageKey(q, p, limit), q.filter.From, q.filter.To, func(ctx context.Context) (Page, error) { return r.page(ctx, q, p, limit) })
}

// page reads a page.
func (r *Reader) page(ctx context.Context, q question, after *position, limit int) (Page, error) {
	c := chunk{limit: limit, events: []Event{}}
	err := r.watched(ctx, "events", func(ctx context.Context, s *session) error {
		windows, err := r.windows(ctx, q, after)
		for i := 0; i < len(windows) && err == nil && c.next == nil; i++ {
			err = s.fill(ctx, &c, q, windows[i], after)
		}
		s.rows = int64(len(c.events))
		return err
	})
	if err != nil {
		return Page{}, err
	}
	page := Page{Events: c.events}
	if c.next != nil {
		page.Next = q.cursor(*c.next)
	}
	return page, nil
}

// Export calls found for every event, in the filter's order, one at a time. It reads in chunks, and holds neither a connection nor a snapshot while found is called: events
// that come meanwhile are found if they come behind where it is. An error of found ends it and is returned.
func (r *Reader) Export(ctx context.Context, scope Scope, f Filter, found func(Event) error) error {
	q, err := ask(scope, f)
	if err != nil || q.scope.empty() {
		return err
	}
	windows, err := r.windows(ctx, q, nil)
	if err != nil {
		return err
	}
	limit := MaxLimit
	for _, w := range windows {
		for c := (chunk{}); ; {
			after := c.next
			c = chunk{limit: limit, last: after}
			err := r.watched(ctx, "export", func(ctx context.Context, s *session) error {
				err := s.fill(ctx, &c, q, w, after)
				s.rows = int64(len(c.events))
				return err
			})
			if err != nil {
				return err
			}
			for _, e := range c.events {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := found(e); err != nil {
					return err
				}
			}
			if c.next == nil {
				break
			}
			// Of large events no more are asked for than a chunk holds, for the server sends them all.
			limit = min(MaxLimit, 2*len(c.events))
		}
	}
	return nil
}

// chunk is the events that have been read of a page or an export, and what ends them.
type chunk struct {
	limit  int
	events []Event
	size   int
	last   *position // of the last event
	next   *position // after which there are more
}

// fill reads events of a window into a chunk until it is full.
func (s *session) fill(ctx context.Context, c *chunk, q question, w window, after *position) error {
	w = w.after(after, q.filter.Ascending)
	if w.partition.bare && !w.partition.scattered {
		return s.fillByPieces(ctx, c, q, w, after)
	}
	return s.fillPiece(ctx, c, q, w, after)
}

// fillPiece is fill by one statement.
func (s *session) fillPiece(ctx context.Context, c *chunk, q question, w window, after *position) error {
	before := *c
	statement := pageStatement(q, w, after, c.limit-len(c.events)+1)
	return s.read(ctx, statement, func() { *c = before }, c.take)
}

// take reads a row.
func (c *chunk) take(rows pgx.Rows) error {
	if len(c.events) == c.limit {
		c.next = c.last
		return errEnough
	}
	e, at, err := scanEvent(rows)
	if err != nil {
		return err
	}
	size := e.size()
	if len(c.events) > 0 && c.size+size > pageBytes {
		c.next = c.last
		return errEnough
	}
	c.events, c.size, c.last = append(c.events, e), c.size+size, &at
	return nil
}

// size is about how many bytes the event takes: what has no small limit, and some for the rest.
func (e *Event) size() int {
	size := 1024 + len(e.Details)
	if e.OutcomeDescription != nil {
		size += len(*e.OutcomeDescription)
	}
	return size
}

// windows cuts what remains of a question's range.
func (r *Reader) windows(ctx context.Context, q question, after *position) ([]window, error) {
	l, err := r.layoutNow(ctx)
	if err != nil {
		return nil, err
	}
	rest := window{from: q.filter.From, to: q.filter.To}.after(after, q.filter.Ascending)
	return l.windows(rest.from, rest.to, q.filter.Ascending, 1), nil
}

// Count counts events, up to most (1 to [MaxCount]): where there are more, the count is most and isn't exact.
func (r *Reader) Count(ctx context.Context, scope Scope, f Filter, most int64) (Count, error) {
	q, err := ask(scope, f)
	if err != nil {
		return Count{}, err
	}
	if most < 1 || most > MaxCount {
		return Count{}, &InvalidError{"most", fmt.Sprintf("must be from 1 to %d", MaxCount)}
	}
	if q.scope.empty() {
		return Count{Exact: true}, nil
	}
	return cached(ctx, r, key(keyCount, q, most), q.filter.From, q.filter.To, func(ctx context.Context) (Count, error) { return r.count(ctx, q, most) })
}

func (r *Reader) count(ctx context.Context, q question, most int64) (Count, error) {
	var count int64
	err := r.watched(ctx, "count", func(ctx context.Context, s *session) error {
		windows, err := r.windows(ctx, q, nil)
		for i := 0; i < len(windows) && err == nil && count <= most; i++ {
			var counted int64
			err = s.read(ctx, countStatement(q, windows[i], most-count+1), func() {}, func(rows pgx.Rows) error { return rows.Scan(&counted) })
			count += counted
			s.rows++
		}
		return err
	})
	if err != nil {
		return Count{}, err
	}
	return Count{Count: min(count, most), Exact: count <= most}, nil
}

// Event returns one event. Its timestamp, where it is known, spares a look into every table partition; zero means unknown. The error is [ErrNotFound] where the scope has
// no such event.
func (r *Reader) Event(ctx context.Context, scope Scope, id int64, at time.Time) (Event, error) {
	from, to := beginning, end
	if !at.IsZero() {
		if at.Before(beginning) || !at.Before(end) {
			return Event{}, &InvalidError{"timestamp", "must be within the years 1 to 9999"}
		}
		from = at.UTC().Truncate(time.Microsecond) // as it was stored
		to = from.Add(time.Microsecond)
	}
	q := question{scope.usable(), Filter{From: from, To: to}}
	if q.scope.empty() {
		return Event{}, ErrNotFound
	}
	return cached(ctx, r, key(keyEvent, q, id), from, to, func(ctx context.Context) (Event, error) { return r.event(ctx, q, id) })
}

func (r *Reader) event(ctx context.Context, q question, id int64) (Event, error) {
	c := chunk{limit: 1}
	err := r.watched(ctx, "event", func(ctx context.Context, s *session) error {
		l, err := r.layoutNow(ctx)
		if err != nil {
			return err
		}
		windows := l.windows(q.filter.From, q.filter.To, false, manyPartitions)
		for i := 0; i < len(windows) && err == nil && len(c.events) == 0; i++ {
			err = s.read(ctx, eventStatement(q.scope, id, windows[i]), func() { c.events = nil }, c.take)
		}
		s.rows = int64(len(c.events))
		return err
	})
	switch {
	case err != nil:
		return Event{}, err
	case len(c.events) == 0:
		return Event{}, ErrNotFound
	}
	return c.events[0], nil
}
