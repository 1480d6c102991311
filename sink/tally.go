package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/postgres"
)

// QuarantineTally counts the quarantined records.
type QuarantineTally struct {
	States  map[string]int64 `json:"by_state"`
	Reasons map[string]int64 `json:"new_by_reason"` // of those in [StateNew]
}

// TallyQuarantine counts all quarantined records: it reads the whole table.
func TallyQuarantine(ctx context.Context, pool *postgres.Pool) (QuarantineTally, error) {
	t := QuarantineTally{States: map[string]int64{StateNew: 0, StateRedriven: 0, StateDiscarded: 0}, Reasons: map[string]int64{}}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return t, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `SELECT state, CASE state WHEN 'new' THEN reason ELSE '' END, count(*) FROM audit_quarantine GROUP BY 1, 2`)
	if err != nil {
		return t, fmt.Errorf("count the quarantined records: %w", err)
	}
	state, reason, n := "", "", int64(0)
	_, err = pgx.ForEachRow(rows, []any{&state, &reason, &n}, func() error {
		t.States[state] += n
		if state == StateNew {
			t.Reasons[reason] += n
		}
		return nil
	})
	if err != nil {
		return t, fmt.Errorf("count the quarantined records: %w", err)
	}
	return t, nil
}

// GapTally counts the gaps of one kind.
type GapTally struct {
	Kind    string    `json:"kind"`
	Gaps    int64     `json:"gaps"`
	Offsets int64     `json:"offsets"` // that they span
	Latest  time.Time `json:"latest"`  // when the last of them went on record
}

// TallyGaps counts all gaps, by kind.
func TallyGaps(ctx context.Context, pool *postgres.Pool) ([]GapTally, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `SELECT kind, count(*), sum(to_offset - from_offset)::bigint, max(recorded_at) FROM audit_gap GROUP BY kind ORDER BY kind`)
	if err != nil {
		return nil, fmt.Errorf("count the gaps: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (GapTally, error) {
		var g GapTally
		err := row.Scan(&g.Kind, &g.Gaps, &g.Offsets, &g.Latest)
		g.Latest = g.Latest.UTC()
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("count the gaps: %w", err)
	}
	return all, nil
}
