package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// summarizeLasts bounds one statement. Ranges that it has summarized stay so when it is ended.
const summarizeLasts = "30s"

// Summarizer brings the BRIN indexes of the partitions that take rows now up to date: pages that were filled since the last VACUUM are read by every query until then (PostgreSQL, BRIN Indexes, Index
// Maintenance). VACUUM does it for the others. It works beside the rounds: in the ten minutes between two of them millions of rows may come. It belongs to one goroutine.
type Summarizer struct {
	DB    *pgxpool.Pool
	Now   func() time.Time // this process's clock
	Every time.Duration    // between two looks for new pages
	// Told is told of what is left for later; and of an error, the first of those that say the same.
	Told func(Care, error)

	sizes map[brin]int64 // of the tables in bytes, when the indexes were last summarized
}

// brin is a BRIN index of a partition.
type brin struct {
	partition string
	oid       int64
}

// Run summarizes until ctx ends, which it returns the cause of, or [ErrDeposed] where the term is over.
func (s *Summarizer) Run(ctx context.Context, term Term) error {
	var last string
	for {
		left, err := s.Summarize(ctx, term)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDeposed):
			return err
		case err == nil:
			last = ""
		case err.Error() != last:
			s.Told(Care{}, err)
			last = err.Error()
		}
		for _, care := range left {
			s.Told(care, nil)
		}
		if !sleep(ctx, s.Every) {
			return context.Cause(ctx)
		}
	}
}

// Summarize does so once, where a table has grown since it last did. Nobody waits for it, and what is locked by somebody else, or takes too long, is left for the next time. It ends with
// [ErrDeposed] where the term is over.
func (s *Summarizer) Summarize(ctx context.Context, term Term) ([]Care, error) {
	rows, err := s.DB.Query(ctx, `
		SELECT b.partition_name, x.indexrelid::bigint, pg_relation_size(b.relid) FROM audit_log_partition_bounds() b
		JOIN pg_index x ON x.indrelid = b.relid AND x.indisvalid JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam
		WHERE a.amname = 'brin' AND NOT b.is_detaching AND coalesce(b.lower_bound <= $1, true) AND coalesce(b.upper_bound + $2::interval > $1, true)
		ORDER BY b.lower_bound, i.relname`, s.Now(), settling)
	if err != nil {
		return nil, fmt.Errorf("look which indexes are to be summarized: %w", err)
	}
	var all []brin
	sizes, known := map[brin]int64{}, s.sizes
	var b brin
	var size *int64 // none where the table is gone
	_, err = pgx.ForEachRow(rows, []any{&b.partition, &b.oid, &size}, func() error {
		if size != nil {
			all = append(all, b)
			sizes[b] = *size
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look which indexes are to be summarized: %w", err)
	}
	s.sizes = map[brin]int64{}
	var left []Care
	var failed []error
	for _, b := range all {
		if before, ok := known[b]; ok && before == sizes[b] {
			s.sizes[b] = before
			continue
		}
		d := due{Care: Care{Partition: b.partition, Kind: "summarize"}}
		u := upkeep{term: term}
		err := u.left(&d, transact(ctx, s.DB, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+upkeepLock+`'; SET LOCAL statement_timeout = '`+summarizeLasts+`'`)
			if err == nil {
				_, err = tx.Exec(ctx, `SELECT brin_summarize_new_values($1::bigint::oid::regclass)`, b.oid)
			}
			if err != nil {
				return err
			}
			return term.confirm(ctx, tx)
		}))
		switch {
		case errors.Is(err, ErrDeposed):
			return left, err
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", d.Care, err))
		case d.Left != "":
			left = append(left, d.Care)
		default:
			s.sizes[b] = sizes[b]
		}
		if ctx.Err() != nil {
			break
		}
	}
	return left, errors.Join(failed...)
}
