// The peer *go*: net/http with a pgx pool. The lookup, and a heartbeat as one guarded UPDATE, both prepared.
//
// Go serves with one process and as many threads that run Go code as the others have processes (GOMAXPROCS).
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	poolSize = 32      // connections of the process: twice what a worker of the others has
	maxBody  = 8 << 20 // bytes
	lookup   = `
SELECT entity_id, domain, current_state, node_type, node_version, capabilities, ack_deadline,
       liveness_deadline, last_heartbeat_at, ack_timeout_emitted_at, liveness_timeout_emitted_at,
       last_applied_event_id, last_applied_partition, last_applied_offset, last_applied_sequence, registered_at,
       updated_at, correlation_id, version
FROM registration_projections WHERE entity_id = $1 AND domain = $2`
	upsert = `
UPDATE registration_projections
SET last_heartbeat_at = $1,
    liveness_deadline = coalesce($2::timestamptz, greatest(liveness_deadline, $1::timestamptz + interval '90 seconds')),
    liveness_timeout_emitted_at = NULL, last_applied_event_id = $3, last_applied_sequence = $4, correlation_id = $5,
    updated_at = $6, version = version + 1
WHERE entity_id = $7 AND domain = $8 AND last_applied_sequence < $4
  AND current_state NOT IN ('rejected', 'liveness_expired')
  AND (last_heartbeat_at IS NULL OR last_heartbeat_at < $1)
RETURNING current_state, version`
	standing = `
SELECT current_state, version, last_applied_sequence, last_applied_event_id
FROM registration_projections WHERE entity_id = $1 AND domain = $2`
	record = `
UPDATE registration_projections
SET last_applied_event_id = $1, last_applied_sequence = $2, correlation_id = $3, updated_at = $4, version = version + 1
WHERE entity_id = $5 AND domain = $6 AND version = $7
RETURNING current_state, version`
)

// registration is a row as answers show it.
type registration struct {
	EntityID                 string          `json:"entity_id"`
	Domain                   string          `json:"domain"`
	CurrentState             string          `json:"current_state"`
	NodeType                 string          `json:"node_type"`
	NodeVersion              string          `json:"node_version"`
	Capabilities             json.RawMessage `json:"capabilities"`
	AckDeadline              *time.Time      `json:"ack_deadline"`
	LivenessDeadline         *time.Time      `json:"liveness_deadline"`
	LastHeartbeatAt          *time.Time      `json:"last_heartbeat_at"`
	AckTimeoutEmittedAt      *time.Time      `json:"ack_timeout_emitted_at"`
	LivenessTimeoutEmittedAt *time.Time      `json:"liveness_timeout_emitted_at"`
	LastAppliedEventID       string          `json:"last_applied_event_id"`
	LastAppliedPartition     *string         `json:"last_applied_partition"`
	LastAppliedOffset        *int64          `json:"last_applied_offset"`
	LastAppliedSequence      *int64          `json:"last_applied_sequence"`
	RegisteredAt             time.Time       `json:"registered_at"`
	UpdatedAt                time.Time       `json:"updated_at"`
	CorrelationID            *string         `json:"correlation_id"`
	Version                  int64           `json:"version"`
}

type position struct {
	Sequence *int64 `json:"sequence"`
}

// heartbeat is the only event type of the measurement.
type heartbeat struct {
	EventID       string    `json:"event_id"`
	Type          string    `json:"type"`
	EntityID      string    `json:"entity_id"`
	Domain        string    `json:"domain"`
	Position      position  `json:"position"`
	OccurredAt    time.Time `json:"occurred_at"`
	CorrelationID *string   `json:"correlation_id"`
	Data          struct {
		HeartbeatAt      *time.Time `json:"heartbeat_at"`
		LivenessDeadline *time.Time `json:"liveness_deadline"`
	} `json:"data"`
}

// result is the outcome of an event.
type result struct {
	EventID      string    `json:"event_id"`
	Outcome      string    `json:"outcome"`
	Reason       *string   `json:"reason"`
	EntityID     string    `json:"entity_id"`
	Domain       string    `json:"domain"`
	CurrentState *string   `json:"current_state"`
	Version      *int64    `json:"version"`
	StandsAt     *position `json:"stands_at"`
}

type problem struct {
	Detail string `json:"detail"`
}

type service struct{ pool *pgxpool.Pool }

func (s service) getEntity(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !isUUID(id) {
		answer(w, http.StatusUnprocessableEntity, problem{"the id is not a UUID"})
		return
	}
	domain := "registration"
	if r.URL.RawQuery != "" {
		if given := r.URL.Query().Get("domain"); given != "" {
			domain = given
		}
	}
	var row registration
	err := s.pool.QueryRow(r.Context(), lookup, id, domain).Scan(
		&row.EntityID, &row.Domain, &row.CurrentState, &row.NodeType, &row.NodeVersion, &row.Capabilities,
		&row.AckDeadline, &row.LivenessDeadline, &row.LastHeartbeatAt, &row.AckTimeoutEmittedAt,
		&row.LivenessTimeoutEmittedAt, &row.LastAppliedEventID, &row.LastAppliedPartition, &row.LastAppliedOffset,
		&row.LastAppliedSequence, &row.RegisteredAt, &row.UpdatedAt, &row.CorrelationID, &row.Version)
	if errors.Is(err, pgx.ErrNoRows) {
		answer(w, http.StatusNotFound, problem{"there is no entity " + id})
		return
	}
	if err != nil {
		answer(w, http.StatusServiceUnavailable, problem{err.Error()})
		return
	}
	inUTC(row.AckDeadline, row.LivenessDeadline, row.LastHeartbeatAt, row.AckTimeoutEmittedAt,
		row.LivenessTimeoutEmittedAt, &row.RegisteredAt, &row.UpdatedAt)
	w.Header().Set("ETag", `"`+strconv.FormatInt(row.Version, 10)+`"`)
	answer(w, http.StatusOK, row)
}

func (s service) postEvent(w http.ResponseWriter, r *http.Request) {
	event, err := read(w, r)
	if err != nil {
		answer(w, http.StatusUnprocessableEntity, problem{err.Error()})
		return
	}
	at := event.OccurredAt
	if event.Data.HeartbeatAt != nil {
		at = *event.Data.HeartbeatAt
	}
	var state string
	var version int64
	err = s.pool.QueryRow(r.Context(), upsert, at, event.Data.LivenessDeadline, event.EventID, *event.Position.Sequence,
		event.CorrelationID, event.OccurredAt, event.EntityID, event.Domain).Scan(&state, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		s.explain(w, r.Context(), event)
		return
	}
	if err != nil {
		answer(w, http.StatusServiceUnavailable, problem{err.Error()})
		return
	}
	answer(w, http.StatusOK, told(event, "applied", "", &state, &version, event.Position.Sequence))
}

// explain answers an event that updated nothing with the reason.
func (s service) explain(w http.ResponseWriter, ctx context.Context, event heartbeat) {
	var state, eventID string
	var version int64
	var standsAt *int64
	err := s.pool.QueryRow(ctx, standing, event.EntityID, event.Domain).Scan(&state, &version, &standsAt, &eventID)
	sequence := *event.Position.Sequence
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		answer(w, http.StatusOK, told(event, "ignored", "unknown entity", nil, nil, nil))
	case err != nil:
		answer(w, http.StatusServiceUnavailable, problem{err.Error()})
	case standsAt == nil:
		answer(w, http.StatusConflict, problem{"the positions can't be compared"})
	case *standsAt > sequence:
		answer(w, http.StatusOK, told(event, "stale", "the row is further on", &state, &version, standsAt))
	case *standsAt == sequence && eventID == event.EventID:
		answer(w, http.StatusOK, told(event, "duplicate", "this event has already been applied", &state, &version, standsAt))
	case *standsAt == sequence:
		answer(w, http.StatusConflict, problem{"two events claim one position"})
	default:
		err = s.pool.QueryRow(ctx, record, event.EventID, sequence, event.CorrelationID, event.OccurredAt, event.EntityID,
			event.Domain, version).Scan(&state, &version)
		if err != nil {
			answer(w, http.StatusServiceUnavailable, problem{"another writer was faster"})
			return
		}
		answer(w, http.StatusOK, told(event, "ignored", "terminal, or not newer", &state, &version, &sequence))
	}
}

// read decodes and checks the body.
func read(w http.ResponseWriter, r *http.Request) (heartbeat, error) {
	event := heartbeat{Domain: "registration"}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return event, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&event); err != nil {
		return event, err
	}
	switch {
	case event.Type != "node.heartbeat":
		return event, errors.New("the type is not node.heartbeat")
	case !isUUID(event.EventID) || !isUUID(event.EntityID) || event.CorrelationID != nil && !isUUID(*event.CorrelationID):
		return event, errors.New("an id is not a UUID")
	case event.Domain == "" || len(event.Domain) > 128:
		return event, errors.New("the domain has 1 to 128 characters")
	case event.Position.Sequence == nil || *event.Position.Sequence < 0:
		return event, errors.New("the position needs a sequence")
	case event.OccurredAt.IsZero():
		return event, errors.New("occurred_at is missing")
	}
	return event, nil
}

func told(event heartbeat, outcome, reason string, state *string, version, sequence *int64) result {
	said := result{EventID: event.EventID, Outcome: outcome, EntityID: event.EntityID, Domain: event.Domain,
		CurrentState: state, Version: version}
	if reason != "" {
		said.Reason = &reason
	}
	if sequence != nil {
		said.StandsAt = &position{sequence}
	}
	return said
}

func isUUID(text string) bool {
	if len(text) != 36 {
		return false
	}
	for i := range len(text) {
		c := text[i]
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
		if dash != (c == '-') || !dash && !hex {
			return false
		}
	}
	return true
}

func inUTC(times ...*time.Time) {
	for _, at := range times {
		if at != nil {
			*at = at.UTC()
		}
	}
}

func answer(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"detail":"the answer is not JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone needs no answer
}

func serve() error {
	config, err := pgxpool.ParseConfig(fmt.Sprintf(
		"host=%s user=postgres database=%s", os.Getenv("SOCKET_DIR"), os.Getenv("DATABASE")))
	if err != nil {
		return err
	}
	config.MaxConns = poolSize
	pool, err := pgxpool.NewWithConfig(context.Background(), config) // each connection prepares a statement once
	if err != nil {
		return err
	}
	defer pool.Close()
	s := service{pool}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/entities/{id}", s.getEntity)
	mux.HandleFunc("POST /v1/events", s.postEvent)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := pool.Ping(r.Context()); err != nil {
			answer(w, http.StatusServiceUnavailable, problem{err.Error()})
			return
		}
		answer(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	return http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), mux)
}

func main() { log.Fatal(serve()) }
