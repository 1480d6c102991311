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
		UPDATE audit_lane SET epoch = epoch + 1, owner = $4, updated_at = now()
		WHERE topic = $1 AND topic_id = $2 AND partition = $3 AND consumer_group = $5 AND state = 'active'
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
	return Claim{}, unclaimable(ctx, conn.Conn(), lane, group, owner)
}

// settled explains an error, and makes one that doesn't pass by itself fatal.
func settled(err error) error {
	if postgres.Classify(err) == postgres.Transient {
		return postgres.Explain(err)
	}
	return &FatalError{postgres.Explain(err)}
}

// unclaimable finds out why no row of audit_lane is ours to claim.
func unclaimable(ctx context.Context, db *pgx.Conn, lane Lane, group, owner string) error {
	refused := foreign(ctx, db, lane.Topic, lane.TopicID, group)
	if again := (*madeAgainError)(nil); errors.As(refused, &again) {
		// Not where we are the ones who are behind the times, with a topic ID that was known once.
		_, err := db.Exec(ctx, `
			WITH halted AS (
				UPDATE audit_lane SET state = 'halted', updated_at = now()
				WHERE topic = $1 AND topic_id <> $2 AND consumer_group = $3 AND state = 'active'
				  AND NOT EXISTS (SELECT FROM audit_lane WHERE topic = $1 AND topic_id = $2)
				RETURNING lane_id, next_offset)
			INSERT INTO audit_lane_event (lane_id, kind, from_offset, reason, client)
			SELECT lane_id, 'halted', next_offset, $4, $5 FROM halted`,
			lane.Topic, pgtype.UUID{Bytes: lane.TopicID, Valid: true}, group, again.Error(), owner)
		if err != nil {
			return settled(fmt.Errorf("halt the lanes of topic %q: %w", lane.Topic, err))
		}
		return &RefusedError{again.Error()}
	}
	if refused != nil {
		return refused
	}
	var reason string
	var since time.Time
	var id int32
	err := db.QueryRow(ctx, `
		SELECT l.lane_id, coalesce(e.reason, 'no reason is on record'), coalesce(e.recorded_at, l.updated_at) FROM audit_lane l
		LEFT JOIN LATERAL (SELECT reason, recorded_at FROM audit_lane_event e WHERE e.lane_id = l.lane_id AND e.kind = 'halted' ORDER BY id DESC LIMIT 1) e ON true
		WHERE topic = $1 AND topic_id = $2 AND partition = $3 AND state = 'halted'`,
		lane.Topic, pgtype.UUID{Bytes: lane.TopicID, Valid: true}, lane.Partition).Scan(&id, &reason, &since)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrUnregistered
	case err != nil:
		return settled(fmt.Errorf("look for the lane %s: %w", lane, err))
	}
	return &RefusedError{fmt.Sprintf("lane %s halted at %s: %s; once its cause is mended: auditsink lanes accept %d --reason '…'",
		lane, since.UTC().Format(time.RFC3339), reason, id)}
}

// querier is a connection or a transaction on one.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// madeAgainError says that a topic has another ID than its lanes in use.
type madeAgainError struct {
	topic    string
	was, now pgtype.UUID
}

func (e *madeAgainError) Error() string {
	return fmt.Sprintf("topic %q was deleted and created again: its ID is %s now, and was %s when it was stored last; its offsets start anew, so continuing could "+
		"skip or repeat events: bring the old topic back, or begin with the new one: auditsink lanes accept %[1]s --reason '…'", e.topic, e.now, e.was)
}

// foreign refuses a topic any of whose lanes in use is of another topic ID or another group. All its lanes count: of a topic made again with more
// partitions, or extended while another group stores it, the new ones must not slip in. Errors: [*madeAgainError], and as of Claim.
func foreign(ctx context.Context, db querier, topic string, topicID [16]byte, group string) error {
	rows, err := db.Query(ctx, `SELECT topic_id, consumer_group FROM audit_lane WHERE topic = $1 AND state <> 'retired'`, topic)
	if err != nil {
		return settled(fmt.Errorf("look for the lanes of topic %q: %w", topic, err))
	}
	var refused error
	var id pgtype.UUID
	var other string
	_, err = pgx.ForEachRow(rows, []any{&id, &other}, func() error {
		switch {
		case other != group:
			refused = &RefusedError{fmt.Sprintf("topic %q is stored by consumer group %q, and this worker is of group %q: two groups would store every event twice; "+
				"set AUDITSINK_KAFKA_GROUP=%s, or use a database of its own for group %q", topic, other, group, other, group)}
		case id.Bytes != topicID:
			refused = &madeAgainError{topic: topic, was: id, now: pgtype.UUID{Bytes: topicID, Valid: true}}
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
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) (err error) {
		gaps = 0
		// One at a time: of two workers that meet a new topic at once, the second must find all its lanes.
		if err := lockTopic(ctx, tx, topic); err != nil {
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
			var ended int64
			if known {
				if ended, err = endOfRetired(ctx, tx, topic, id, start.Partition); err != nil {
					return err
				}
				begin = max(ended, start.LogStart)
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
			switch {
			case known: // all of it was to be taken
				kind, from, to = GapRetention, ended, begin
			case start.Offset < start.LogStart:
				kind, from, to = GapRetention, start.Offset, start.LogStart
			}
			if from == to {
				continue
			}
			gaps++
			if _, err := tx.Exec(ctx, insertGap, lane, kind, from, to); err != nil {
				return err
			}
		}
		return nil
	})
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		return refused
	}
	if again := (*madeAgainError)(nil); errors.As(err, &again) {
		return &RefusedError{again.Error()}
	}
	if err != nil {
		return settled(fmt.Errorf("register the lanes of topic %q: %w", topic, err))
	}
	s.metrics.Gaps.Add(float64(gaps))
	return nil
}

// endOfRetired returns where the newest retired lane of the same log ended, 0 where there is none: what is before that is stored. An operator may
// have taken a topic for gone that wasn't.
func endOfRetired(ctx context.Context, tx pgx.Tx, topic string, id pgtype.UUID, partition int32) (end int64, err error) {
	err = tx.QueryRow(ctx, `SELECT next_offset FROM audit_lane WHERE topic = $1 AND topic_id = $2 AND partition = $3 AND state = 'retired' ORDER BY lane_id DESC LIMIT 1`,
		topic, id, partition).Scan(&end)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return end, err
}

// Halt puts on record that a lane stands still, and why: nobody can claim it until an operator accepts or resets it. It is void when the
// claim has ended.
func (s *Sink) Halt(ctx context.Context, c Claim, owner, reason string) error {
	return s.record(ctx, `
		WITH halted AS (
			UPDATE audit_lane SET state = 'halted', updated_at = now() WHERE lane_id = $1 AND epoch = $2 AND state = 'active' RETURNING lane_id, next_offset)
		INSERT INTO audit_lane_event (lane_id, kind, from_offset, reason, client)
		SELECT lane_id, 'halted', next_offset, $3, $4 FROM halted`, c.LaneID, c.Epoch, reason, owner)
}

// Rewound puts on record that the database had lost transactions of a lane, which stood at offset was and is claimed again at c.Next.
func (s *Sink) Rewound(ctx context.Context, c Claim, was int64, owner, reason string) error {
	return s.record(ctx, `
		INSERT INTO audit_lane_event (lane_id, kind, from_offset, to_offset, reason, client) VALUES ($1, 'rewound', $2, $3, $4, $5)`,
		c.LaneID, was, c.Next, reason, owner)
}

func (s *Sink) record(ctx context.Context, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("put an event of a lane on record: %w", err)
	}
	return nil
}
