package query

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// layoutAge is how long the bounds of the table partitions are taken for what they were. Answers don't depend on them: windows leave nothing out.
const layoutAge = time.Minute

// A window holds fewestPartitions at first, twice as many each time, and mostPartitions in the end.
const (
	fewestPartitions = 4
	mostPartitions   = 32
)

// beginning and end are where time begins and ends for us.
var (
	beginning = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	end       = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
)

// layout is the table partitions as they were at a moment, oldest first.
type layout struct {
	at         time.Time
	partitions []partition
}

type partition struct {
	table    string // quoted as SQL wants it
	from, to time.Time
}

// window is a part of a range that one statement asks for. A statement plans for each table partition in its range, and locks it with all of its indexes; for thousands of
// them that takes longer than the answer, and more than the server's table of locks holds. And what is sorted rather than read in order is sorted for a window alone.
type window struct {
	from, to time.Time
	table    string // a table partition of it, empty where there is none
}

// after is what the window has of a position on, the position's instant included. A comparison of rows alone would prune no table partitions.
func (w window) after(p *position, ascending bool) window {
	switch {
	case p == nil:
	case ascending && w.from.UnixMicro() < p.at:
		w.from = time.UnixMicro(p.at)
	case !ascending && w.to.UnixMicro() > p.at+1:
		w.to = time.UnixMicro(p.at + 1)
	}
	return w
}

// windows cuts a range into windows in the order in which they are read. Whatever the layout, they cover the range, and don't overlap.
func (l *layout) windows(from, to time.Time, ascending bool) []window {
	var within []partition
	for _, p := range l.partitions {
		if p.from.Before(to) && p.to.After(from) {
			within = append(within, p)
		}
	}
	if !ascending {
		slices.Reverse(within)
	}
	var all []window
	w := window{from: from, to: to}
	for size := fewestPartitions; len(within) > size; size = min(2*size, mostPartitions) {
		w.table = within[0].table
		if last := within[size-1]; ascending {
			w.to = last.to
			all = append(all, w)
			w.from, w.to = last.to, to
		} else {
			w.from = last.from
			all = append(all, w)
			w.from, w.to = from, last.from
		}
		within = within[size:]
	}
	if len(within) > 0 {
		w.table = within[0].table
	}
	return append(all, w)
}

// layoutNow returns the layout, read anew where it is too old.
func (r *Reader) layoutNow(ctx context.Context) (*layout, error) {
	if l := r.known.Load(); l != nil && time.Since(l.at) < layoutAge {
		return l, nil
	}
	l := &layout{at: time.Now()}
	s := statement{text: `SELECT relid::regclass::text, lower_bound, upper_bound FROM audit_log_partition_bounds() WHERE NOT is_default`}
	err := r.watched(ctx, "partitions", func(ctx context.Context, m *reading) error {
		return r.read(ctx, m, s, func() { l.partitions = nil }, func(rows pgx.Rows) error {
			p := partition{from: beginning, to: end}
			var lower, upper *time.Time
			if err := rows.Scan(&p.table, &lower, &upper); err != nil {
				return err
			}
			if lower != nil {
				p.from = *lower
			}
			if upper != nil {
				p.to = *upper
			}
			l.partitions = append(l.partitions, p)
			m.rows++
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the table partitions: %w", err)
	}
	r.known.Store(l)
	return l, nil
}
