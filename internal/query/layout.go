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

// manyPartitions is how many table partitions one statement or one transaction may look into. It locks each of them with all of its indexes, 18 locks a partition. The server
// has 6,400 for all by default; were they taken up, ingest would fail too.
const manyPartitions = 8

// scatteredBelow is the correlation of the rows' order with their time (pg_stats) below which a table partition counts as scattered. At 0.9 a few minutes are spread over a quarter of it: two
// lanes that are as far apart have that.
const scatteredBelow = 0.9

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
	bare     bool // it has no B-tree on timestamp
	// scattered: its rows aren't in the order of their time. Some minutes of them are in most of its blocks.
	scattered bool
}

// window is a part of a range that one statement asks for.
//
// Events are asked for by table partition. One statement for all would be planned as if what is looked for were spread evenly over the range: for what is in one month alone it
// would go through the others by time, and throw all away.
type window struct {
	from, to time.Time
	// partition is one of the window's, the zero one where there is none.
	partition partition
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

// windows cuts a range into windows of so many table partitions, in the order in which they are read. Whatever the layout, they cover the range, and don't overlap.
func (l *layout) windows(from, to time.Time, ascending bool, size int) []window {
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
	for ; len(within) > size; within = within[size:] {
		w.partition = within[0]
		if last := within[size-1]; ascending {
			w.to = last.to
			all = append(all, w)
			w.from, w.to = last.to, to
		} else {
			w.from = last.from
			all = append(all, w)
			w.from, w.to = from, last.from
		}
	}
	if len(within) > 0 {
		w.partition = within[0]
	}
	return append(all, w)
}

// layoutNow returns the layout, read anew where it is too old.
func (r *Reader) layoutNow(ctx context.Context) (*layout, error) {
	if l := r.known.Load(); l != nil && time.Since(l.at) < layoutAge {
		return l, nil
	}
	l := &layout{at: time.Now()}
	list := statement{text: `
		SELECT b.relid::regclass::text, b.lower_bound, b.upper_bound, NOT EXISTS (
			SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = b.relid AND a.attnum = i.indkey[0] AND a.attname = 'timestamp'
			JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
			WHERE i.indrelid = b.relid AND i.indisvalid AND i.indpred IS NULL),
			coalesce((SELECT abs(s.correlation) < ` + fmt.Sprint(scatteredBelow) + ` FROM pg_stats s
				WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = 'timestamp' AND NOT s.inherited), false)
		FROM audit_log_partition_bounds() b JOIN pg_class c ON c.oid = b.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT b.is_default
		ORDER BY b.lower_bound NULLS FIRST`}
	err := r.watched(ctx, "partitions", func(ctx context.Context, s *session) error {
		return s.read(ctx, list, func() { l.partitions = nil }, func(rows pgx.Rows) error {
			p := partition{from: beginning, to: end}
			var lower, upper *time.Time
			if err := rows.Scan(&p.table, &lower, &upper, &p.bare, &p.scattered); err != nil {
				return err
			}
			if lower != nil {
				p.from = *lower
			}
			if upper != nil {
				p.to = *upper
			}
			l.partitions = append(l.partitions, p)
			s.rows++
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the table partitions: %w", err)
	}
	r.known.Store(l)
	return l, nil
}
