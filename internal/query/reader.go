package query

import (
	"context"
	"fmt"
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
	// Slow is the duration from which a query is logged.
	Slow time.Duration
	// Timeout bounds each question, and each chunk of an export: the wait for a connection, all attempts and all statements together. 0 leaves it to the caller's context.
	Timeout time.Duration
	// RetryAttempts is how often a read is tried whose connection got lost, RetryDelay the wait between the attempts.
	RetryAttempts int
	RetryDelay    time.Duration
}

// Reader reads events. It is safe for concurrent use.
//
// What it returns is an [InvalidError] for a question that can't be answered, [ErrNotFound], [ErrTimeout], the cause of the context's end, or an error of the database.
type Reader struct {
	pool *postgres.Pool
	o    Options
}

// New makes a reader on a pool, which should be of its own: ingest must not wait for reads.
func New(pool *postgres.Pool, o Options) *Reader { return &Reader{pool: pool, o: o} }

// Events returns a page of at most limit events (1 to [MaxLimit]), newest first unless the filter says otherwise, that follow the cursor of the page before; the first
// page has none. A page may hold fewer events although more follow; the last is the one without a next.
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
	events, next, err := r.page(ctx, q, p, limit)
	if err != nil {
		return Page{}, err
	}
	page := Page{Events: events}
	if next != nil {
		page.Next = q.cursor(*next)
	}
	return page, nil
}

// Export calls found for every event, in the filter's order, one at a time. It reads in chunks, and holds neither a connection nor a snapshot while found is called: events
// that come meanwhile are found if they come behind where it is. An error of found ends it and is returned.
func (r *Reader) Export(ctx context.Context, scope Scope, f Filter, found func(Event) error) error {
	q, err := ask(scope, f)
	if err != nil {
		return err
	}
	var after *position
	for {
		events, next, err := r.page(ctx, q, after, MaxLimit)
		if err != nil {
			return err
		}
		for _, e := range events {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := found(e); err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		after = next
	}
}

// page reads a page and the position after which the next begins, nil at the end.
func (r *Reader) page(ctx context.Context, q question, after *position, limit int) ([]Event, *position, error) {
	events := []Event{}
	if q.scope.empty() {
		return events, nil, nil
	}
	from, to := q.filter.From, q.filter.To
	if after != nil && q.filter.Ascending {
		from = time.UnixMicro(after.at)
	} else if after != nil {
		to = time.UnixMicro(after.at + 1)
	}
	var last, next *position
	restart := func() { events, last, next = events[:0], nil, nil }
	err := r.read(ctx, pageStatement(q, from, to, after, limit+1), restart, func(rows pgx.Rows) error {
		if len(events) == limit {
			next = last
			return nil
		}
		e, at, err := scanEvent(rows)
		if err != nil {
			return err
		}
		events, last = append(events, e), &at
		return nil
	})
	return events, next, err
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
	var count int64
	err = r.read(ctx, countStatement(q, q.filter.From, q.filter.To, most+1), func() {}, func(rows pgx.Rows) error { return rows.Scan(&count) })
	if err != nil {
		return Count{}, err
	}
	return Count{Count: min(count, most), Exact: count <= most}, nil
}

// Event returns one event. Its timestamp, where it is known, spares a look into every table partition; zero means unknown. The error is [ErrNotFound] where the scope has
// no such event.
func (r *Reader) Event(ctx context.Context, scope Scope, id int64, at time.Time) (Event, error) {
	from, to := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)
	if !at.IsZero() {
		if year := at.UTC().Year(); year < 1 || year > 9999 {
			return Event{}, &InvalidError{"timestamp", "must be within the years 1 to 9999"}
		}
		from = at.UTC().Truncate(time.Microsecond) // as it was stored
		to = from.Add(time.Microsecond)
	}
	scope = scope.usable()
	if scope.empty() {
		return Event{}, ErrNotFound
	}
	var event *Event
	err := r.read(ctx, eventStatement(scope, id, from, to), func() { event = nil }, func(rows pgx.Rows) error {
		e, _, err := scanEvent(rows)
		event = &e
		return err
	})
	switch {
	case err != nil:
		return Event{}, err
	case event == nil:
		return Event{}, ErrNotFound
	}
	return *event, nil
}
