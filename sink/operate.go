package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"auditsink/internal/postgres"
)

// What operators do to lanes. Each change raises the epoch, so that a worker that stores the lane is fenced and comes back to it.

// Log is what the brokers have of a lane now.
type Log struct {
	// Start is the offset of the first record.
	Start int64
	// Known is the offset up to which it is the log that the lane was read from.
	Known int64
}

// Operation is who does something to a lane, and why.
type Operation struct {
	Client string // who, as the program knows them
	Reason string
}

// Outcome is what became of a lane.
type Outcome struct {
	LaneID int32
	// Retired says that it doesn't go on itself; Successor is the lane that does in its place, 0 where none does.
	Retired    bool
	Successor  int32
	NextOffset int64
}

// ErrChanged says that a lane is not as it was looked at: look again.
var ErrChanged = errors.New("the lane has changed meanwhile: look at it again with `auditsink lanes list`")

// Accept lets a halted lane go on. Where the log was cut below its position, the lane is retired and a successor begins where the log
// that was read ends: so offsets that are used again never name two records of one lane. lane is as [Lanes] listed it.
func Accept(ctx context.Context, pool *postgres.Pool, lane LaneStatus, log Log, op Operation) (Outcome, error) {
	outcome := Outcome{LaneID: lane.LaneID, NextOffset: lane.NextOffset}
	err := inTransaction(ctx, pool, func(tx pgx.Tx) error {
		if err := lock(ctx, tx, lane); err != nil {
			return err
		}
		if log.Known >= lane.NextOffset {
			_, err := tx.Exec(ctx, `UPDATE audit_lane SET state = 'active', epoch = epoch + 1, updated_at = now() WHERE lane_id = $1`, lane.LaneID)
			return errors.Join(err, note(ctx, tx, lane.LaneID, "accepted", lane.NextOffset, lane.NextOffset, op))
		}
		if err := retire(ctx, tx, lane, log.Known, op); err != nil {
			return err
		}
		outcome.Retired = true
		outcome.NextOffset = max(log.Known, log.Start)
		err := tx.QueryRow(ctx, `
			INSERT INTO audit_lane (topic, topic_id, partition, consumer_group, next_offset)
			SELECT topic, topic_id, partition, consumer_group, $2 FROM audit_lane WHERE lane_id = $1 RETURNING lane_id`,
			lane.LaneID, outcome.NextOffset).Scan(&outcome.Successor)
		if err != nil {
			return err
		}
		if log.Known < log.Start { // retention was faster than us
			if _, err := tx.Exec(ctx, insertGap, outcome.Successor, GapRetention, log.Known, log.Start); err != nil {
				return err
			}
		}
		return note(ctx, tx, outcome.Successor, "accepted", outcome.NextOffset, outcome.NextOffset, op)
	})
	if err != nil {
		return Outcome{}, fmt.Errorf("accept lane %d: %w", lane.LaneID, err)
	}
	return outcome, nil
}

// AcceptTopic begins with a topic that was deleted and created again: the lanes of the old one are retired, and each partition of the new one, of
// which starts has the logs, gets a lane that begins at the start of its log. Without any, the topic is gone, and only its lanes are retired.
func AcceptTopic(ctx context.Context, pool *postgres.Pool, old []LaneStatus, topicID [16]byte, starts map[int32]Log, op Operation) ([]Outcome, error) {
	outcomes := make([]Outcome, 0, len(old))
	topic, group := old[0].Topic, old[0].Group
	err := inTransaction(ctx, pool, func(tx pgx.Tx) error {
		outcomes = outcomes[:0]
		if err := lockTopic(ctx, tx, topic); err != nil {
			return err
		}
		successors := map[int32]Outcome{}
		for partition, log := range starts {
			id := pgtype.UUID{Bytes: topicID, Valid: true}
			ended, err := endOfRetired(ctx, tx, topic, id, partition)
			if err != nil {
				return err
			}
			o := Outcome{NextOffset: max(log.Start, ended)}
			err = tx.QueryRow(ctx, `
				INSERT INTO audit_lane (topic, topic_id, partition, consumer_group, next_offset) VALUES ($1, $2, $3, $4, $5) RETURNING lane_id`,
				topic, id, partition, group, o.NextOffset).Scan(&o.Successor)
			if err != nil {
				return err
			}
			if err := note(ctx, tx, o.Successor, "accepted", o.NextOffset, o.NextOffset, op); err != nil {
				return err
			}
			if log.Start > ended { // retention was faster than us
				if _, err := tx.Exec(ctx, insertGap, o.Successor, GapRetention, ended, log.Start); err != nil {
					return err
				}
			}
			successors[partition] = o
		}
		for _, lane := range old {
			if err := lock(ctx, tx, lane); err != nil {
				return err
			}
			if err := retire(ctx, tx, lane, lane.NextOffset, op); err != nil {
				return err
			}
			o, ok := successors[lane.Partition]
			if !ok { // the new topic has fewer partitions
				o.NextOffset = lane.NextOffset
			}
			o.LaneID, o.Retired = lane.LaneID, true
			outcomes = append(outcomes, o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("accept topic %q: %w", topic, err)
	}
	return outcomes, nil
}

// StoredAboveError says that a lane can't be set back, for its records from there on are stored: they would be stored twice.
type StoredAboveError struct{ To, Stored int64 }

// Error names the offset of a record in the way.
func (e *StoredAboveError) Error() string {
	return fmt.Sprintf("the record at offset %d is stored already, and would be a second time after a reset to %d: reset to behind what is stored", e.Stored, e.To)
}

// Reset moves a lane, halted or not, to another offset, and returns where it was. What a move forward passes over goes on record as a gap of
// kind skipped. A move back is refused with a [*StoredAboveError] where anything from there on is stored, since that would store it twice;
// looking for that reads all of audit_log, while the lane goes on. Where it has moved by then: [ErrChanged].
func Reset(ctx context.Context, pool *postgres.Pool, lane int32, to int64, op Operation) (was int64, err error) {
	if was, err = resettable(ctx, pool, lane, to); err != nil {
		return 0, fmt.Errorf("reset lane %d: %w", lane, err)
	}
	back := to < was
	err = inTransaction(ctx, pool, func(tx pgx.Tx) error {
		before := was
		err := tx.QueryRow(ctx, `SELECT next_offset FROM audit_lane WHERE lane_id = $1 AND state <> 'retired' FOR UPDATE`, lane).Scan(&was)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && was != before && (back || to < was) {
			return ErrChanged
		}
		if err != nil {
			return err
		}
		if to > was {
			if _, err := tx.Exec(ctx, insertGap, lane, "skipped", was, to); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `
			UPDATE audit_lane SET state = 'active', epoch = epoch + 1, next_offset = $2, leader_epoch = -1, updated_at = now() WHERE lane_id = $1`, lane, to)
		return errors.Join(err, note(ctx, tx, lane, "reset", was, to, op))
	})
	if err != nil {
		return 0, fmt.Errorf("reset lane %d: %w", lane, err)
	}
	return was, nil
}

// resettable returns where a lane is, if it can be moved to an offset.
func resettable(ctx context.Context, pool *postgres.Pool, lane int32, to int64) (was int64, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, `SELECT next_offset FROM audit_lane WHERE lane_id = $1 AND state <> 'retired'`, lane).Scan(&was)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, ErrChanged
	case err != nil || to >= was:
		return was, err
	}
	var stored *int64
	err = conn.QueryRow(ctx, `
		SELECT min(lane_offset) FROM (
			SELECT lane_offset FROM audit_log WHERE lane_id = $1 AND lane_offset >= $2
			UNION ALL SELECT lane_offset FROM audit_quarantine WHERE lane_id = $1 AND lane_offset >= $2) above`,
		lane, to).Scan(&stored)
	if err == nil && stored != nil {
		err = &StoredAboveError{To: to, Stored: *stored}
	}
	return was, err
}

func inTransaction(ctx context.Context, pool *postgres.Pool, do func(tx pgx.Tx) error) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{BeginQuery: begin}, do)
}

// lock takes a lane's row, which must still be where it was looked at.
func lock(ctx context.Context, tx pgx.Tx, lane LaneStatus) error {
	var next, epoch int64
	var state string
	err := tx.QueryRow(ctx, `SELECT next_offset, epoch, state FROM audit_lane WHERE lane_id = $1 FOR UPDATE`, lane.LaneID).Scan(&next, &epoch, &state)
	if err == nil && (next != lane.NextOffset || epoch != lane.Epoch || state != lane.State) || errors.Is(err, pgx.ErrNoRows) {
		return ErrChanged
	}
	return err
}

// lockTopic lets one at a time change which lanes a topic has.
func lockTopic(ctx context.Context, tx pgx.Tx, topic string) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('auditsink lanes'), hashtext($1))`, topic)
	return err
}

func retire(ctx context.Context, tx pgx.Tx, lane LaneStatus, to int64, op Operation) error {
	_, err := tx.Exec(ctx, `UPDATE audit_lane SET state = 'retired', epoch = epoch + 1, updated_at = now() WHERE lane_id = $1`, lane.LaneID)
	return errors.Join(err, note(ctx, tx, lane.LaneID, "accepted", lane.NextOffset, to, op))
}

func note(ctx context.Context, tx pgx.Tx, lane int32, kind string, from, to int64, op Operation) error {
	_, err := tx.Exec(ctx, `INSERT INTO audit_lane_event (lane_id, kind, from_offset, to_offset, reason, client) VALUES ($1, $2, $3, $4, $5, $6)`,
		lane, kind, from, to, op.Reason, op.Client)
	return err
}
