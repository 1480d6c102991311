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

// Summarize brings the BRIN indexes of the partitions that take rows now up to date: pages that were filled since the last VACUUM are read by every query until then (PostgreSQL, BRIN Indexes, Index
// Maintenance). VACUUM does it for the others. Nobody waits for it, and what is locked by somebody else, or takes too long, is left for the next round. It ends with
// [ErrDeposed] where the term is over.
func Summarize(ctx context.Context, db *pgxpool.Pool, term Term, now time.Time) ([]Care, error) {
	rows, err := db.Query(ctx, `
		SELECT b.partition_name, x.indexrelid::bigint FROM audit_log_partition_bounds() b
		JOIN pg_index x ON x.indrelid = b.relid AND x.indisvalid JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam
		WHERE a.amname = 'brin' AND NOT b.is_detaching AND coalesce(b.lower_bound <= $1, true) AND coalesce(b.upper_bound + $2::interval > $1, true)
		ORDER BY b.lower_bound, i.relname`, now, settling)
	if err != nil {
		return nil, fmt.Errorf("look which indexes are to be summarized: %w", err)
	}
	type brin struct {
		partition string
		oid       int64
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b brin, err error) {
		err = row.Scan(&b.partition, &b.oid)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("look which indexes are to be summarized: %w", err)
	}
	var left []Care
	var failed []error
	for _, b := range all {
		d := due{Care: Care{Partition: b.partition, Kind: "summarize"}}
		u := upkeep{term: term}
		err := u.left(&d, transact(ctx, db, func(tx pgx.Tx) error {
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
		}
		if ctx.Err() != nil {
			break
		}
	}
	return left, errors.Join(failed...)
}
