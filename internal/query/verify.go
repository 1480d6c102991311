// Package query reads what is stored.
package query

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"auditsink/hashing"
	"auditsink/internal/postgres"
)

// sliceBlocks is how many blocks of a table one query of Verify reads: 64 MiB of 8 KiB blocks.
const sliceBlocks = 8192

// Mismatch is a row whose hash isn't what its columns give.
type Mismatch struct {
	ID             int64     `json:"id"`
	TablePartition string    `json:"table_partition"`
	Timestamp      time.Time `json:"timestamp"`
	LaneID         *int32    `json:"lane_id"`
	LaneOffset     *int64    `json:"lane_offset"`
	Algorithm      *string   `json:"hash_algorithm"`
	Stored         *string   `json:"stored_hash"`
	Computed       string    `json:"computed_hash"`
	Fault          Fault     `json:"fault"`
}

// Fault says what of a row doesn't fit.
type Fault string

// The faults, of which the first that holds is told.
const (
	WrongHash      Fault = "hash"           // it isn't what the columns give
	WrongAlgorithm Fault = "hash_algorithm" // it isn't SHA-256
	WrongTimestamp Fault = "timestamp"      // it isn't the instant that the hashed text names
)

// Verified is the outcome of [Verify].
type Verified struct {
	Rows       int64 `json:"rows"`
	Mismatches int64 `json:"mismatches"`
}

// slice is a part of one table partition to be read by one query.
type slice struct {
	table      pgx.Identifier
	name       string
	from, till int64 // blocks; the last slice of a table has no end
	last       bool
}

// Verify computes the hash of every row of audit_log again and compares. readers queries run at once, each on its own
// connection. found is called for each row that differs, one at a time; its error ends the work.
func Verify(ctx context.Context, pool *postgres.Pool, readers int, found func(Mismatch) error) (Verified, error) {
	slices, err := plan(ctx, pool)
	if err != nil {
		return Verified{}, err
	}
	var mu sync.Mutex // guards total and calls to found
	var total Verified
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, s := range slices {
		group.Go(func() error {
			rows, err := verifySlice(ctx, pool, s, func(m Mismatch) error {
				mu.Lock()
				defer mu.Unlock()
				total.Mismatches++
				return found(m)
			})
			if err != nil {
				return fmt.Errorf("verify %s: %w", s.name, err)
			}
			mu.Lock()
			total.Rows += rows
			mu.Unlock()
			return nil
		})
	}
	err = group.Wait()
	return total, err
}

// plan cuts the table partitions into slices.
func plan(ctx context.Context, pool *postgres.Pool) ([]slice, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `
		SELECT n.nspname, c.relname, pg_relation_size(c.oid) / current_setting('block_size')::bigint
		FROM pg_partition_tree('audit_log') t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE t.isleaf AND c.relkind = 'r' ORDER BY c.relname`)
	if err != nil {
		return nil, fmt.Errorf("list the table partitions: %w", err)
	}
	var slices []slice
	var schema, name string
	var blocks int64
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &blocks}, func() error {
		s := slice{table: pgx.Identifier{schema, name}, name: name}
		for ; blocks-s.from > sliceBlocks; s.from += sliceBlocks {
			s.till = s.from + sliceBlocks
			slices = append(slices, s)
		}
		s.last = true
		slices = append(slices, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the table partitions: %w", err)
	}
	return slices, nil
}

// verifySlice reads one slice and reports the rows that differ.
func verifySlice(ctx context.Context, pool *postgres.Pool, s slice, found func(Mismatch) error) (int64, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	where := fmt.Sprintf("ctid >= '(%d,0)'", s.from)
	if !s.last {
		where += fmt.Sprintf(" AND ctid < '(%d,0)'", s.till)
	}
	rows, err := conn.Query(ctx, `SELECT id, timestamp, lane_id, lane_offset, hash_algorithm, hash, timestamp_text, action, organization_id,
		outcome_description, principal_id, status, target_resource_id, target_resource_type FROM ONLY `+s.table.Sanitize()+` WHERE `+where)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var count int64
	var scratch, computed []byte
	for rows.Next() {
		m := Mismatch{TablePartition: s.name}
		var f hashing.Fields
		var text []byte
		if err := rows.Scan(&m.ID, &m.Timestamp, &m.LaneID, &m.LaneOffset, &m.Algorithm, &m.Stored, &text, &f.Action, &f.OrganizationID,
			&f.OutcomeDescription, &f.PrincipalID, &f.Status, &f.TargetResourceID, &f.TargetResourceType); err != nil {
			return count, err
		}
		count++
		computed = hashing.AppendStoredHex(computed[:0], &f, text, m.Timestamp.UnixMicro(), &scratch)
		switch {
		case m.Stored == nil || *m.Stored != string(computed):
			m.Fault = WrongHash
		case m.Algorithm == nil || *m.Algorithm != "SHA-256":
			m.Fault = WrongAlgorithm
		case !names(text, m.Timestamp):
			m.Fault = WrongTimestamp
		default:
			continue
		}
		m.Computed = string(computed)
		if err := found(m); err != nil {
			return count, err
		}
	}
	return count, rows.Err()
}

// names tells whether the hashed text of a timestamp is that of the stored instant, which the hash itself doesn't cover. The hash
// proves the text to be as received, so it can be read leniently: the rules for it were applied then. The canonical text (nil)
// has whole milliseconds.
func names(text []byte, stored time.Time) bool {
	if text == nil {
		return stored.UnixMicro()%1000 == 0
	}
	upper := strings.ToUpper(string(text)) // RFC 3339 allows t and z
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if at, err := time.Parse(layout, upper); err == nil {
			return at.UnixMicro() == stored.UnixMicro()
		}
	}
	return false
}
