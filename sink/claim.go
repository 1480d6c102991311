package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"auditsink/internal/postgres"
)

// claimTimeout bounds one attempt to claim a lane: a connection may be dead without saying so.
const claimTimeout = 30 * time.Second

// Claim raises the lane's epoch, so that whoever held it before can store nothing any more, and returns the position.
// Errors: [ErrUnregistered], [*RefusedError], [*FatalError]; any other passes by itself.
func (s *Sink) Claim(ctx context.Context, lane Lane, group, owner string) (Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return Claim{}, settled(err)
	}
	defer conn.Release()
	c := Claim{}
	err = conn.QueryRow(ctx, `
		UPDATE audit_lane SET epoch = epoch + 1, owner = $4, state = 'active', updated_at = now()
		WHERE topic = $1 AND topic_id = $2 AND partition = $3 AND consumer_group = $5
		RETURNING lane_id, epoch, next_offset, leader_epoch`,
		lane.Topic, pgtype.UUID{Bytes: lane.TopicID, Valid: true}, lane.Partition, owner, group).
		Scan(&c.LaneID, &c.Epoch, &c.Next, &c.LeaderEpoch)
	switch {
	case err == nil:
		return c, nil
	case !errors.Is(err, pgx.ErrNoRows):
		if postgres.IsReadOnly(err) {
			conn.Conn().Close(ctx) //nolint:errcheck,gosec // it is dropped for being of no use; the refusal is what gets reported
		}
		return Claim{}, settled(fmt.Errorf("claim lane %s: %w", lane, err))
	}
	return Claim{}, unclaimable(ctx, conn.Conn(), lane, group)
}

// settled explains an error, and makes one that doesn't pass by itself fatal.
func settled(err error) error {
	if postgres.Classify(err) == postgres.Transient {
		return postgres.Explain(err)
	}
	return &FatalError{postgres.Explain(err)}
}

// unclaimable finds out why no row of audit_lane is ours.
func unclaimable(ctx context.Context, db querier, lane Lane, group string) error {
	if err := foreign(ctx, db, lane.Topic, lane.TopicID, group); err != nil {
		return err
	}
	return ErrUnregistered
}

// querier is a connection or a transaction on one.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// foreign refuses a topic any of whose lanes is of another topic ID or another group. All its lanes count: of a topic made again with more
// partitions, or extended while another group stores it, the new ones must not slip in.
func foreign(ctx context.Context, db querier, topic string, topicID [16]byte, group string) error {
	rows, err := db.Query(ctx, `SELECT topic_id, consumer_group FROM audit_lane WHERE topic = $1`, topic)
	if err != nil {
		return settled(fmt.Errorf("look for the lanes of topic %q: %w", topic, err))
	}
	var refused error
	var id pgtype.UUID
	var other string
	_, err = pgx.ForEachRow(rows, []any{&id, &other}, func() error {
		switch {
		case id.Bytes != topicID:
			refused = &RefusedError{fmt.Sprintf("topic %q was deleted and created again: its ID is %s now, and was %s when it was stored last; its offsets start anew, "+
				"so continuing could skip or repeat events: bring the old topic back, or, once all its events are stored, remove its lanes with "+
				"DELETE FROM audit_lane WHERE topic = '%s' AND topic_id = '%[3]s', and restart",
				topic, pgtype.UUID{Bytes: topicID, Valid: true}, id, topic)}
		case other != group:
			refused = &RefusedError{fmt.Sprintf("topic %q is stored by consumer group %q, and this worker is of group %q: two groups would store every event twice; "+
				"set AUDITSINK_KAFKA_GROUP=%s, or use a database of its own for group %q", topic, other, group, other, group)}
		}
		return nil
	})
	if err != nil {
		return settled(fmt.Errorf("look for the lanes of topic %q: %w", topic, err))
	}
	return refused
}

// Start is where a lane that Postgres doesn't know yet begins.
type Start struct {
	Partition int32
	// Offset is the first to be taken. Where it is below LogStart, retention was faster: that becomes a gap on record.
	Offset int64
	// LogStart is the first the broker has.
	LogStart int64
}

// Register makes the lanes of a topic known, all that it has now, in one transaction. Those already known stay as they are. Where the topic was
// known before, a new lane is a partition that was added to it since, and so begins at the start of its log, whatever its Offset
// says. A lane that begins above the start of its log leaves a gap on record, so that history is never skipped unseen. Errors: as of Claim.
func (s *Sink) Register(ctx context.Context, topic string, topicID [16]byte, group string, starts []Start) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return settled(err)
	}
	defer conn.Release()
	gaps := 0
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		gaps = 0
		// One at a time: of two workers that meet a new topic at once, the second must find all its lanes.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('auditsink lanes'), hashtext($1))`, topic); err != nil {
			return err
		}
		id := pgtype.UUID{Bytes: topicID, Valid: true}
		if err := foreign(ctx, tx, topic, topicID, group); err != nil {
			return err
		}
		var known bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_lane WHERE topic = $1 AND topic_id = $2)`, topic, id).Scan(&known); err != nil {
			return err
		}
		for _, start := range starts {
			begin := max(start.Offset, start.LogStart)
			if known {
				begin = start.LogStart
			}
			var lane int32
			err := tx.QueryRow(ctx, `
				INSERT INTO audit_lane (topic, topic_id, partition, consumer_group, next_offset)
				VALUES ($1, $2, $3, $4, $5) ON CONFLICT (topic, topic_id, partition) WHERE state <> 'retired' DO NOTHING RETURNING lane_id`,
				topic, id, start.Partition, group, begin).Scan(&lane)
			if errors.Is(err, pgx.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			kind, from, to := "start", start.LogStart, begin
			if start.Offset < start.LogStart && !known {
				kind, from, to = "retention", start.Offset, start.LogStart
			}
			if from == to {
				continue
			}
			gaps++
			if _, err := tx.Exec(ctx, `INSERT INTO audit_gap (lane_id, kind, from_offset, to_offset) VALUES ($1, $2, $3, $4)`, lane, kind, from, to); err != nil {
				return err
			}
		}
		return nil
	})
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		return refused
	}
	if err != nil {
		return settled(fmt.Errorf("register the lanes of topic %q: %w", topic, err))
	}
	s.metrics.Gaps.Add(float64(gaps))
	return nil
}

// Halt notes in the lane's row that it stands still, for `lanes list`. It is void when the claim has ended.
func (s *Sink) Halt(ctx context.Context, c Claim) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `UPDATE audit_lane SET state = 'halted', updated_at = now() WHERE lane_id = $1 AND epoch = $2`, c.LaneID, c.Epoch); err != nil {
		return fmt.Errorf("note that lane %d is halted: %w", c.LaneID, err)
	}
	return nil
}
