package partitions

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Preview is what the schedule asks for by now.
type Preview struct {
	Create     []Step    // what [Ensure] would create, in order
	Replace    []Bounds  // empty months ahead that the leader removes, for days to follow (see [Superseded])
	Keep       []Bounds  // likewise, but they hold rows, and so stay
	ReadyUntil time.Time // see [ReadyUntil]
}

// Look tells what the schedule asks for, and changes nothing: a standby will do. The error is as of [Plan], and then what was returned is good all
// the same; or the database's.
func Look(ctx context.Context, db *pgxpool.Pool, now time.Time, schedule Schedule) (Preview, error) {
	var p Preview
	var unplanned error
	// One snapshot for all of it.
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		catalog, err := read(ctx, tx)
		if err != nil {
			return err
		}
		p.ReadyUntil = ReadyUntil(now, catalog.Partitions)
		p.Create, unplanned = Plan(now, catalog, schedule)
		for _, b := range Superseded(now, catalog.Partitions, schedule) {
			rows := false
			// Through the parent, whose schema it is, and in its range alone: the planner looks into no other partition.
			err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_log WHERE timestamp >= $1 AND timestamp < $2)`, b.From, b.To).Scan(&rows)
			switch {
			case err != nil:
				return fmt.Errorf("look for rows in %s: %w", b.Name, err)
			case rows:
				p.Keep = append(p.Keep, b)
			default:
				p.Replace = append(p.Replace, b)
			}
		}
		return nil
	})
	if err != nil {
		return Preview{}, fmt.Errorf("look what the partitions of audit_log lack: %w", err)
	}
	return p, unplanned
}
