package partitions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Hold is a legal hold: what matches all the criteria it has isn't removed until it is released. Without any it holds everything.
type Hold struct {
	ID            int64     `json:"id"`
	From          time.Time `json:"from,omitzero"`  // of timestamps; zero: unbounded
	Until         time.Time `json:"until,omitzero"` // not included; zero: unbounded
	Organization  *string   `json:"organization_id,omitempty"`
	Correlation   *string   `json:"correlation_id,omitempty"`
	Reason        string    `json:"reason"`
	PlacedBy      string    `json:"placed_by"` // the operator, and the database user
	PlacedAt      time.Time `json:"placed_at"`
	ReleasedBy    string    `json:"released_by,omitempty"`
	ReleasedAt    time.Time `json:"released_at,omitzero"`
	ReleaseReason string    `json:"release_reason,omitempty"`
}

const holdColumns = ` id, nullif(held_from, '-infinity'), nullif(held_until, 'infinity'), organization_id, correlation_id, reason, placed_by, placed_at,
	coalesce(released_by, ''), released_at, coalesce(release_reason, '') `

func scanHold(row pgx.CollectableRow) (Hold, error) {
	var h Hold
	var from, until, released *time.Time
	err := row.Scan(&h.ID, &from, &until, &h.Organization, &h.Correlation, &h.Reason, &h.PlacedBy, &h.PlacedAt, &h.ReleasedBy, &released, &h.ReleaseReason)
	h.From, h.Until, h.ReleasedAt, h.PlacedAt = utc(from), utc(until), utc(released), h.PlacedAt.UTC()
	return h, err
}

// Holds lists the legal holds in the order in which they were placed; with released, also those that no longer hold.
func Holds(ctx context.Context, db *pgxpool.Pool, released bool) ([]Hold, error) {
	rows, err := db.Query(ctx, `SELECT`+holdColumns+`FROM audit_legal_hold WHERE $1::boolean OR released_at IS NULL ORDER BY id`, released)
	if err != nil {
		return nil, fmt.Errorf("list the legal holds: %w", err)
	}
	holds, err := pgx.CollectRows(rows, scanHold)
	if err != nil {
		return nil, fmt.Errorf("list the legal holds: %w", err)
	}
	return holds, nil
}

// PlaceHold places a legal hold by the criteria and the reason of h, for client, and returns it as it is on record. From its return on nothing that it
// covers is removed; it waits where something is being removed right now.
func PlaceHold(ctx context.Context, db *pgxpool.Pool, h Hold, client string) (Hold, error) {
	var placed Hold
	err := persist(ctx, func() error {
		return transact(ctx, db, func(tx pgx.Tx) (err error) {
			placed, err = placeHold(ctx, tx, h, client)
			return err
		})
	})
	if err != nil {
		return Hold{}, fmt.Errorf("place a legal hold: %w", err)
	}
	return placed, nil
}

func placeHold(ctx context.Context, tx pgx.Tx, h Hold, client string) (Hold, error) {
	rows, err := tx.Query(ctx, `
		INSERT INTO audit_legal_hold (held_from, held_until, organization_id, correlation_id, reason, placed_by)
		VALUES ($1, $2, $3, $4, $5, $6::text || ' (' || session_user || ')') RETURNING`+holdColumns,
		orNull(h.From), orNull(h.Until), h.Organization, h.Correlation, h.Reason, client)
	if err != nil {
		return Hold{}, err
	}
	return pgx.CollectExactlyOneRow(rows, scanHold)
}

// ReleaseHold ends a legal hold, for client. One that was released before is returned as it is, with [ErrReleased].
func ReleaseHold(ctx context.Context, db *pgxpool.Pool, id int64, reason, client string) (Hold, error) {
	var hold Hold
	var before bool
	err := persist(ctx, func() error {
		return transact(ctx, db, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `SELECT`+holdColumns+`FROM audit_legal_hold WHERE id = $1 FOR UPDATE`, id)
			if err != nil {
				return err
			}
			if hold, err = pgx.CollectExactlyOneRow(rows, scanHold); errors.Is(err, pgx.ErrNoRows) {
				return errors.New("there is no such hold")
			}
			if before = !hold.ReleasedAt.IsZero(); err != nil || before {
				return err
			}
			rows, err = tx.Query(ctx, `
				UPDATE audit_legal_hold SET released_by = $2::text || ' (' || session_user || ')', released_at = clock_timestamp(), release_reason = $3
				WHERE id = $1 RETURNING`+holdColumns, id, client, reason)
			if err != nil {
				return err
			}
			hold, err = pgx.CollectExactlyOneRow(rows, scanHold)
			return err
		})
	})
	if err != nil {
		return Hold{}, fmt.Errorf("release legal hold %d: %w", id, err)
	}
	if before {
		return hold, ErrReleased
	}
	return hold, nil
}

// ErrReleased means that a legal hold was released before.
var ErrReleased = errors.New("the hold was released before")

// orNull is the opposite of utc.
func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// holdsOn lists the legal holds that cover a partition: by time alone those whose range overlaps its bounds, otherwise those that a row of it matches. Those are
// looked for in the order of the index, between the value and itself: told that it equals the value, the planner would expect so many rows of an organization that it
// reads the table, all of it where there are none.
func holdsOn(ctx context.Context, db querier, w way) ([]int64, error) {
	const within = ` AND (h.held_from IS NULL OR t.timestamp >= h.held_from) AND (h.held_until IS NULL OR t.timestamp < h.held_until)`
	rows, err := db.Query(ctx, `
		SELECT h.id FROM audit_legal_hold h
		WHERE h.released_at IS NULL
		  AND ($1::timestamptz IS NULL OR h.held_until IS NULL OR h.held_until > $1) AND ($2::timestamptz IS NULL OR h.held_from IS NULL OR h.held_from < $2)
		  AND CASE
			WHEN h.correlation_id IS NOT NULL THEN (SELECT true FROM `+w.table+` t
				WHERE t.correlation_id BETWEEN h.correlation_id AND h.correlation_id AND (h.organization_id IS NULL OR t.organization_id = h.organization_id)`+within+`
				ORDER BY t.correlation_id LIMIT 1)
			WHEN h.organization_id IS NOT NULL THEN (SELECT true FROM `+w.table+` t
				WHERE t.organization_id BETWEEN h.organization_id AND h.organization_id`+within+` ORDER BY t.organization_id LIMIT 1)
			ELSE true END
		ORDER BY h.id`, orNull(w.From), orNull(w.To))
	if err != nil {
		return nil, fmt.Errorf("look for legal holds on %s: %w", w.Name, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for legal holds on %s: %w", w.Name, err)
	}
	return ids, nil
}

// unheld is the condition on rows t that no legal hold covers them.
const unheld = ` NOT EXISTS (SELECT FROM audit_legal_hold h WHERE h.released_at IS NULL
	AND (h.held_from IS NULL OR t.timestamp >= h.held_from) AND (h.held_until IS NULL OR t.timestamp < h.held_until)
	AND (h.organization_id IS NULL OR t.organization_id = h.organization_id) AND (h.correlation_id IS NULL OR t.correlation_id = h.correlation_id)) `
