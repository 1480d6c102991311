package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/indexes"
)

// unbuilt is a partition that lacks some of the indexes that are built after its interval.
type unbuilt struct {
	Bounds
	ended time.Time // its upper bound, or when it was created where that was later; zero: never
	lacks []indexes.Index
}

// readUnbuilt lists them, that which has ended longest ago first; none where indexes are built immediately. It takes no lock on any partition.
func readUnbuilt(ctx context.Context, db querier) ([]unbuilt, error) {
	choice, err := indexes.Chosen(ctx, db)
	if err != nil || len(choice.Later()) == 0 {
		return nil, err
	}
	lacking, err := indexes.Lacking(ctx, db, choice.Later())
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, `
		SELECT b.partition_name, b.lower_bound, b.upper_bound, b.is_default, b.is_detaching, CASE WHEN b.upper_bound IS NOT NULL THEN greatest(b.upper_bound, (
			SELECT e.recorded_at FROM audit_partition_event e WHERE e.partition_name = b.partition_name AND e.kind = 'create' ORDER BY e.id DESC LIMIT 1)) END
		FROM audit_log_partition_bounds() b ORDER BY 6 NULLS LAST, 1`)
	if err != nil {
		return nil, fmt.Errorf("read when the partitions ended: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (unbuilt, error) {
		var u unbuilt
		var from, to, ended *time.Time
		err := row.Scan(&u.Name, &from, &to, &u.Default, &u.Detaching, &ended)
		u.From, u.To, u.ended = utc(from), utc(to), utc(ended)
		u.lacks = lacking[u.Name]
		return u, err
	})
	if err != nil {
		return nil, fmt.Errorf("read when the partitions ended: %w", err)
	}
	return slices.DeleteFunc(all, func(u unbuilt) bool { return len(u.lacks) == 0 }), nil
}

// due tells whether the partition's indexes may be built by now.
func (u unbuilt) due(now time.Time, grace time.Duration) bool {
	return !u.ended.IsZero() && !u.Detaching && !u.ended.Add(grace).After(now)
}

// names are those of the indexes that it lacks.
func (u unbuilt) names() []string {
	all := make([]string, len(u.lacks))
	for n, i := range u.lacks {
		all[n] = i.Name(u.Name)
	}
	return all
}

// notTold is why nothing is said of a partition's rows: without its indexes all of it would have to be read.
const notTold = "not told before its indexes are built"

// errUnbuilt is why such a partition has to wait where something is to go.
var errUnbuilt = errors.New("its indexes are to be built first, by which it is judged")

// untoldOf are the partitions that lack indexes to judge them by. They aren't read whole for that every few minutes: what is to go waits for its indexes.
func untoldOf(ctx context.Context, db querier) (map[string]bool, error) {
	all, err := readUnbuilt(ctx, db)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, u := range all {
		names[u.Name] = true
	}
	return names, nil
}

// holdsRows tells whether a table has any row, by reading one.
func holdsRows(ctx context.Context, db querier, table string) (bool, error) {
	rows, err := db.Query(ctx, `SELECT EXISTS (SELECT FROM `+table+`)`)
	if err != nil {
		return false, fmt.Errorf("look for rows in %s: %w", table, err)
	}
	some, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
	if err != nil {
		return false, fmt.Errorf("look for rows in %s: %w", table, err)
	}
	return some, nil
}

// addUnbuilt tells which indexes the partitions that have ended lack.
func (s *Survey) addUnbuilt(ctx context.Context, db querier) error {
	all, err := readUnbuilt(ctx, db)
	if err != nil {
		return err
	}
	for _, u := range all {
		i := slices.IndexFunc(s.Stats, func(p Stat) bool { return p.Name == u.Name && p.Phase == PhasePast })
		if i >= 0 {
			s.Stats[i].Unbuilt, s.Stats[i].Ended = u.names(), u.ended
		}
	}
	return nil
}

// ToBuild counts the indexes that are to be built by now, and tells since when the first of them has waited: the grace after the end of its partition's interval; zero where there are none.
func (s Survey) ToBuild(grace time.Duration) (n int, since time.Time) {
	for _, p := range s.Stats {
		due := p.Ended.Add(grace)
		if len(p.Unbuilt) == 0 || due.After(s.Now) {
			continue
		}
		n += len(p.Unbuilt)
		if since.IsZero() || due.Before(since) {
			since = due
		}
	}
	return n, since
}
