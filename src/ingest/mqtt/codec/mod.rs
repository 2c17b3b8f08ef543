//! Packets of publishers: from bytes, with rumqttc's codec, and answers to bytes.
//!
//! That codec is a client's, and lenient. What a server has to check before is in [`scan`]; packets that are little more than an identifier
//! are read from the frame there as well. Answers are a few bytes each and written as they stand in the standard, in [`mod@write`].
//!
//! A password has to be UTF-8, because rumqttc reads it as text; MQTT allows any bytes (MQTT 5.0 §3.1.3.6).

pub mod scan;
pub mod write;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

use crate::core::event::Properties;
use crate::core::frame::{self, Frame, FrameError};
use crate::core::listener::{Close, Connect, Incoming, Publish, Will, code};
use crate::core::types::{Protocol, Qos};

/// Takes the next packet out of what has arrived; none if there is not enough yet. Before CONNECT there is no protocol.
///
/// # Errors
/// If the bytes make no packet that a publisher may send; the connection is of no use after that.
pub fn read(protocol: Option<Protocol>, arrived: &mut BytesMut, most: usize) -> Result<Option<Incoming>, Close> {
    if protocol.is_none()
        && let Some(first) = arrived.first().filter(|first| **first != frame::CONNECT << 4)
    {
        // Known from the first byte: whoever speaks something else is not waited for.
        let what = match first {
            0x16 => "it speaks TLS, and `listener.certfile` is not set",
            b'A'..=b'Z' => "it speaks something like HTTP; the API has another address (`http.listen`)",
            _ => "the first packet is not CONNECT",
        };
        return Err(Close::new("no_connect", 0, what));
    }
    let frame = Frame::find(arrived, most).map_err(|error| match error {
        FrameError::TooLarge(bytes) => Close::new(
            "too_large",
            code::TOO_LARGE,
            format!("a packet of {bytes} bytes is announced, and {most} are taken (`http.max_report`)"),
        ),
        FrameError::Length => Close::malformed(error.to_string()),
    })?;
    let Some(frame) = frame else { return Ok(None) };
    let Some(protocol) = protocol else {
        return read_connect(arrived, frame).map(Some);
    };
    scan::check_flags(frame)?;
    let body = frame.body(arrived);
    let packet = match frame.kind {
        frame::CONNECT => Incoming::Unexpected("a second CONNECT"),
        frame::PUBLISH => return read_publish(protocol, arrived, frame).map(Some),
        frame::PUBREL => Incoming::PubRel { packet_id: scan::pubrel(protocol, body)? },
        frame::SUBSCRIBE => {
            let (packet_id, filters) = scan::subscribe(protocol, body)?;
            Incoming::Subscribe { packet_id, filters }
        }
        frame::UNSUBSCRIBE => {
            let (packet_id, filters) = scan::unsubscribe(protocol, body)?;
            Incoming::Unsubscribe { packet_id, filters }
        }
        frame::PINGREQ => {
            scan::empty(body)?;
            Incoming::PingReq
        }
        frame::DISCONNECT => {
            let (code, session_expiry_s) = scan::disconnect(protocol, body)?;
            Incoming::Disconnect { code, session_expiry_s }
        }
        _ => Incoming::Unexpected(frame.name()),
    };
    let _ = arrived.split_to(frame.length);
    Ok(Some(packet))
}

fn read_connect(arrived: &mut BytesMut, frame: Frame) -> Result<Incoming, Close> {
    scan::check_flags(frame)?;
    let protocol = scan::connect(frame.body(arrived))?;
    let mut bytes = arrived.split_to(frame.length);
    let connect = match protocol {
        Protocol::V311 => match v4::Packet::read(&mut bytes, usize::MAX).map_err(|error| Close::malformed(error.to_string()))? {
            v4::Packet::Connect(connect) => connect4(connect),
            _ => return Err(Close::malformed("CONNECT was read as something else")),
        },
        Protocol::V5 => match v5::Packet::read(&mut bytes, None).map_err(|error| Close::malformed(error.to_string()))? {
            v5::Packet::Connect(connect, will, login) => connect5(connect, will, login)?,
            _ => return Err(Close::malformed("CONNECT was read as something else")),
        },
    };
    Ok(Incoming::Connect(Box::new(connect)))
}

fn connect4(connect: v4::Connect) -> Connect {
    let will = connect.last_will.map(|will| Will {
        publish: Publish {
            topic: will.topic,
            alias: None,
            qos: qos(will.qos as u8),
            retain: will.retain,
            dup: false,
            packet_id: 0,
            expiry_s: None,
            properties: Properties::default(),
            payload: will.message,
        },
        delay_s: 0,
    });
    Connect {
        protocol: Protocol::V311,
        client_id: connect.client_id,
        clean: connect.clean_session,
        keepalive_s: connect.keep_alive,
        session_expiry_s: if connect.clean_session { 0 } else { u32::MAX },
        maximum_packet_size: None,
        login: connect.login.map(|login| (login.username, login.password)),
        will,
        wants_authentication: false,
    }
}

fn connect5(connect: v5::Connect, will: Option<v5::LastWill>, login: Option<v5::Login>) -> Result<Connect, Close> {
    let properties = connect.properties;
    let will = match will {
        None => None,
        Some(will) => {
            let given = will.properties.unwrap_or(v5::LastWillProperties {
                delay_interval: None,
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            });
            let publish = Publish {
                topic: text(&will.topic)?,
                alias: None,
                qos: qos(will.qos as u8),
                retain: will.retain,
                dup: false,
                packet_id: 0,
                expiry_s: given.message_expiry_interval,
                properties: Properties {
                    payload_format: given.payload_format_indicator,
                    content_type: given.content_type,
                    response_topic: given.response_topic,
                    correlation_data: given.correlation_data,
                    user: given.user_properties,
                },
                payload: will.message,
            };
            check_properties(&publish.properties)?;
            Some(Will { publish, delay_s: given.delay_interval.unwrap_or(0) })
        }
    };
    Ok(Connect {
        protocol: Protocol::V5,
        client_id: connect.client_id,
        clean: connect.clean_start,
        keepalive_s: connect.keep_alive,
        session_expiry_s: properties.as_ref().and_then(|known| known.session_expiry_interval).unwrap_or(0),
        maximum_packet_size: properties.as_ref().and_then(|known| known.max_packet_size),
        login: login.map(|login| (login.username, login.password)),
        will,
        wants_authentication: properties.is_some_and(|known| known.authentication_method.is_some()),
    })
}

fn read_publish(protocol: Protocol, arrived: &mut BytesMut, frame: Frame) -> Result<Incoming, Close> {
    scan::publish(protocol, frame, frame.body(arrived))?;
    let mut bytes = arrived.split_to(frame.length);
    let publish = match protocol {
        Protocol::V311 => match v4::Packet::read(&mut bytes, usize::MAX).map_err(|error| Close::malformed(error.to_string()))? {
            v4::Packet::Publish(publish) => Publish {
                topic: publish.topic,
                alias: None,
                qos: qos(publish.qos as u8),
                retain: publish.retain,
                dup: publish.dup,
                packet_id: publish.pkid,
                expiry_s: None,
                properties: Properties::default(),
                payload: publish.payload,
            },
            _ => return Err(Close::malformed("PUBLISH was read as something else")),
        },
        Protocol::V5 => match v5::Packet::read(&mut bytes, None).map_err(|error| Close::malformed(error.to_string()))? {
            v5::Packet::Publish(publish) => publish5(publish)?,
            _ => return Err(Close::malformed("PUBLISH was read as something else")),
        },
    };
    Ok(Incoming::Publish(Box::new(publish)))
}

fn publish5(publish: v5::Publish) -> Result<Publish, Close> {
    let given = publish.properties.unwrap_or_default();
    if !given.subscription_identifiers.is_empty() {
        // MQTT 5.0 §3.3.4
        return Err(Close::protocol("a PUBLISH of a client has a subscription identifier"));
    }
    let properties = Properties {
        payload_format: given.payload_format_indicator,
        content_type: given.content_type,
        response_topic: given.response_topic,
        correlation_data: given.correlation_data,
        user: given.user_properties,
    };
    check_properties(&properties)?;
    Ok(Publish {
        topic: text(&publish.topic)?,
        alias: given.topic_alias,
        qos: qos(publish.qos as u8),
        retain: publish.retain,
        dup: publish.dup,
        packet_id: publish.pkid,
        expiry_s: given.message_expiry_interval,
        properties,
        payload: publish.payload,
    })
}

/// What a broker would close the connection for must not get into the log.
fn check_properties(properties: &Properties) -> Result<(), Close> {
    if properties.payload_format.is_some_and(|format| format > 1) {
        // MQTT 5.0 §3.3.2.3.2
        return Err(Close::protocol("a payload format indicator is 0 or 1"));
    }
    if properties.response_topic.as_ref().is_some_and(|topic| topic.contains(['+', '#'])) {
        // MQTT 5.0 §3.3.2.3.5
        return Err(Close::protocol("a response topic contains a wildcard"));
    }
    let texts = [&properties.content_type, &properties.response_topic].into_iter().flatten();
    let pairs = properties.user.iter().flat_map(|(name, value)| [name, value]);
    if texts.chain(pairs).any(|text| text.contains('\0')) {
        // MQTT 5.0 §1.5.4
        return Err(Close::malformed("a property contains U+0000"));
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String, Close> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Close::malformed("a topic is not UTF-8"))
}

/// The codec has refused 3 before.
fn qos(level: u8) -> Qos {
    Qos::try_from(u64::from(level)).unwrap_or_default()
}
