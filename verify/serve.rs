//! `keel serve` as its clients meet it: a process of its own, spoken to over loopback.

mod client;
mod server;

use std::fs;
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keel::eval::AnsweredItem;
use keel::serve::AnswerText;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value as Json, json};

use crate::command::{keel, shared_folder, tiny_recipe};
use crate::data_pairs::images;
use client::{ask, body, complete, connect, image_part, leave_mid_stream, read, request, text};
use server::{Server, long_run, short_run};

/// The first image of the tests, as part of a content.
fn first_image() -> Json {
    let (kind, bytes) = images().swap_remove(0);
    image_part(kind, &bytes)
}

/// A request whose answer takes long: drawn at the highest temperature, and ended by the end of the row alone.
fn long_body() -> Json {
    let mut body = body(json!([first_image(), text("what is this?")]));
    body["temperature"] = json!(2);
    body["stream"] = json!(true);
    body
}

#[test]
fn served_answers_are_those_of_caption_and_of_a_benchmark() {
    let folder = short_run();
    let server = Server::start(folder, &[]);
    let files = images();
    // A benchmark, with two questions about one image.
    let image = |index: usize| STANDARD.encode(&files[index].1);
    let rows = format!(
        "index\timage\tquestion\tanswer\n1\t{}\twhat is this?\tcat\n2\t{}\tis there a cat?\tyes\n3\t1\thow many?\t3\n",
        image(0),
        image(1)
    );
    fs::write(folder.join("served.tsv"), rows).unwrap();
    keel(
        folder,
        &["eval", "run", "--device", "cpu", "--bench", "served.tsv"],
    )
    .fine();
    let kept = fs::read_to_string(folder.join("run/evaluations/2-world-knowledge.served.jsonl"));
    let wanted: Vec<AnsweredItem> = kept
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let questions = [
        (0, "what is this?"),
        (1, "is there a cat?"),
        (0, "how many?"),
    ];
    for ((file, question), wanted) in questions.into_iter().zip(&wanted) {
        let (kind, bytes) = &files[file];
        // The image stands before the question wherever a client has it.
        for content in [
            json!([image_part(kind, bytes), text(question)]),
            json!([text(question), image_part(kind, bytes)]),
        ] {
            let reply = complete(server.address, &body(content));
            assert_eq!(Some(reply.answer()), wanted.prediction, "{question}");
        }
    }
    // Several images, a description, and drawn tokens, as `keel caption` gives them.
    for (index, (kind, bytes)) in files.iter().enumerate() {
        fs::write(folder.join(format!("{index}.{kind}")), bytes).unwrap();
    }
    let first = format!("0.{}", files[0].0);
    let second = format!("1.{}", files[1].0);
    let caption = |args: &[&str]| {
        let common = ["caption", "run", "--device", "cpu"];
        let answer = keel(folder, &[&common[..], args].concat()).fine();
        answer.stdout.trim_end_matches('\n').to_owned()
    };
    let two = [&files[0], &files[1]].map(|(kind, bytes)| image_part(kind, bytes));
    let [one, other] = two;
    let asked = body(json!([one, other, text("which is red?")]));
    assert_eq!(
        complete(server.address, &asked).answer(),
        caption(&[&first, &second, "--question", "which is red?"])
    );
    let described = complete(server.address, &body(json!([one]))).answer();
    assert_eq!(described, caption(&[&first]));
    let mut drawn = body(json!([one, text("what is this?")]));
    drawn["temperature"] = json!(0.8);
    drawn["top_p"] = json!(0.9);
    drawn["seed"] = json!(7);
    let sampling = ["--temperature", "0.8", "--top-p", "0.9", "--seed", "7"];
    let wanted = caption(&[&[&*first, "--question", "what is this?"][..], &sampling].concat());
    assert_eq!(complete(server.address, &drawn).answer(), wanted);
    assert_eq!(complete(server.address, &drawn).answer(), wanted);
}

#[test]
fn settings_streams_and_turns_are_honoured() {
    let server = Server::start(short_run(), &["--name", "run"]);
    let mut asked = body(json!([first_image(), text("what is this?")]));
    let whole = complete(server.address, &asked);
    let (answer, json) = (whole.answer(), whole.json());
    assert!(answer.len() > 4, "{answer:?}");
    assert_eq!(json["object"], "chat.completion");
    let usage = &json["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(
        count("prompt_tokens") + count("completion_tokens"),
        count("total_tokens")
    );
    assert!(count("prompt_tokens") > 4 && count("completion_tokens") > 1);

    // The same in pieces, with the counts at the end.
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let events = complete(server.address, &asked).events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces: Vec<&str> = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(pieces.concat(), answer);
    assert!(pieces.len() > 3, "{pieces:?}");
    let [.., ended, counted] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        ended["choices"][0]["finish_reason"],
        json["choices"][0]["finish_reason"]
    );
    // The second time all of the prompt but its last token had been read.
    assert_eq!(
        counted["usage"]["completion_tokens"],
        usage["completion_tokens"]
    );
    let cached = &counted["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached.as_u64(), Some(count("prompt_tokens") - 1));

    // Fewer tokens, and a stop in the middle, which is no part of the answer.
    let mut short = body(json!([first_image(), text("what is this?")]));
    short["max_tokens"] = json!(2);
    let cut = complete(server.address, &short).json();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 2);
    let start = cut["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(answer.starts_with(start) && answer != start);
    let middle = answer
        .char_indices()
        .nth(answer.chars().count() / 2)
        .unwrap()
        .0;
    let stop: String = answer[middle..].chars().take(2).collect();
    let mut stopped = body(json!([first_image(), text("what is this?")]));
    stopped["stop"] = json!(["never said", stop]);
    let ended = complete(server.address, &stopped).json();
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    let before = answer.split(&stop).next().unwrap();
    assert_eq!(ended["choices"][0]["message"]["content"], before);

    // A conversation that goes on, words of the system, and a text without an image.
    let further = json!({"model": "run", "temperature": 0, "messages": [
        {"role": "system", "content": "say it briefly"},
        {"role": "user", "content": [first_image(), text("what?")]},
        {"role": "assistant", "content": "a cat", "refusal": null, "tool_calls": []},
        {"role": "user", "content": "why?"},
    ]});
    let of_turns = complete(server.address, &further);
    assert_eq!(
        of_turns.answer(),
        complete(server.address, &further).answer()
    );
    assert!(of_turns.json()["usage"]["prompt_tokens"].as_u64() > Some(count("prompt_tokens")));
    complete(server.address, &body(json!("what is a cat?"))).answer();

    // What else there is to ask.
    let models = ask(server.address, "GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["id"], "run");
    assert_eq!(ask(server.address, "GET", "/v1/models/run", "").status, 200);
    assert_eq!(ask(server.address, "GET", "/health", "").status, 200);
    let page = ask(server.address, "GET", "/", "");
    assert!(page.body.starts_with("<!doctype html>"));
    for outside in ["http://", "https://", "src=\"", "@import", "url("] {
        assert!(!page.body.contains(outside), "the page names {outside}");
    }
}

#[test]
fn the_page_is_told_where_the_model_looked_and_what_stages_before_answered() {
    let server = Server::start(short_run(), &[]);
    let mut asked = body(json!([first_image(), text("what is this?")]));
    let answer = complete(server.address, &asked).answer();
    let stages = ask(server.address, "POST", "/stages", &asked.to_string()).events();
    assert_eq!(stages.len(), 1);
    assert_eq!(stages[0]["stage"], "fine-grained");
    let earlier = keel(
        short_run(),
        &[
            "eval",
            "run",
            "--device",
            "cpu",
            "--stage",
            "fine-grained",
            "--bench",
            "none.tsv",
        ],
    );
    earlier.refused(&["none.tsv"]);
    assert!(stages[0]["answer"].is_string(), "{stages:?}");
    asked["answer"] = json!(answer);
    let look = ask(server.address, "POST", "/look", &asked.to_string()).json();
    let grid = look["grid"].as_u64().unwrap() as usize;
    let words = look["words"].as_array().unwrap();
    let said: String = words
        .iter()
        .map(|word| word["text"].as_str().unwrap())
        .collect();
    assert_eq!(said, answer);
    for word in words {
        let shares = word["attention"].as_array().unwrap();
        assert_eq!(shares.len(), grid * grid);
        let sum: f64 = shares.iter().map(|share| share.as_f64().unwrap()).sum();
        assert!(sum > 0.0 && sum < 1.0, "{sum}");
    }
    let nearest = look["nearest"].as_array().unwrap();
    assert_eq!(nearest.len(), grid * grid);
    let cosines: Vec<f64> = nearest[0]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["cosine"].as_f64().unwrap())
        .collect();
    assert!(cosines.len() == 3 && cosines.is_sorted_by(|a, b| a >= b));
    let side = look["side"].as_u64().unwrap() as usize;
    let shown = look["images"][0].as_str().unwrap();
    assert_eq!(STANDARD.decode(shown).unwrap().len(), 3 * side * side);
    assert!(look["tiles"].is_null(), "{}", look["tiles"]);
}

#[test]
fn a_look_at_an_image_in_tiles_says_how_they_lie() {
    let folder = shared_folder();
    // Twice as wide as high: two tiles beside each other, and the whole image.
    let mut wide = Vec::new();
    let mut encoder = png::Encoder::new(&mut wide, 128, 64);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    let shades: Vec<u8> = (0..128 * 64 * 3).map(|i| (i % 251) as u8).collect();
    writer.write_image_data(&shades).unwrap();
    writer.finish().unwrap();
    fs::write(folder.join("wide.png"), &wide).unwrap();
    let line = r#"{"image": "wide.png", "question": "what is this?", "answer": "a cat"}"#;
    fs::write(folder.join("list.jsonl"), format!("{line}\n").repeat(4)).unwrap();
    fs::write(folder.join("one.toml"), tiny_recipe(&["world-knowledge"])).unwrap();
    let args = "train --device cpu --recipe one.toml --data list.jsonl --no-evaluation --max-steps 1 --out run \
                --set stage.world-knowledge.contrastive_weight=0 --set stage.world-knowledge.max_tiles=4 \
                --set stage.world-knowledge.data.samples=3 --set stage.world-knowledge.max_tokens=256";
    keel(&folder, &args.split_whitespace().collect::<Vec<_>>()).fine();
    let server = Server::start(&folder, &[]);
    let asked = body(json!([image_part("png", &wide), text("what is this?")]));
    let asked = with(asked, "answer", json!("a cat"));
    let look = ask(server.address, "POST", "/look", &asked.to_string()).json();
    assert_eq!(look["tiles"], json!([2, 1]), "{look:#?}");
    assert_eq!(look["images"].as_array().unwrap().len(), 3);
    let grid = look["grid"].as_u64().unwrap() as usize;
    let shares = look["words"][0]["attention"].as_array().unwrap();
    assert_eq!(shares.len(), 3 * grid * grid);
}

/// Changes one field of a request.
fn with(mut body: Json, key: &str, value: Json) -> Json {
    body[key] = value;
    body
}

#[test]
fn bad_requests_are_refused_by_name_and_the_server_goes_on() {
    let server = Server::start(short_run(), &["--max-request", "1M"]);
    let address = server.address;
    let good = || body(json!([first_image(), text("what is this?")]));
    let answer = complete(address, &good()).answer();
    let refused = |body: Json, status: u16, parts: &[&str]| {
        complete(address, &body).refused(status, parts);
    };
    let post = |text: &str| ask(address, "POST", "/v1/chat/completions", text);
    // The form.
    post("{\"model\":").refused(400, &["no JSON"]);
    post("[1]").refused(400, &["no object"]);
    post(&"[".repeat(100_000)).refused(400, &["no JSON"]);
    post("").refused(400, &["no JSON"]);
    refused(
        with(good(), "model", json!("gpt-4")),
        404,
        &["gpt-4", "run"],
    );
    refused(
        with(good(), "model", json!(null)),
        400,
        &["model is missing"],
    );
    refused(with(good(), "messages", json!([])), 400, &["messages"]);
    refused(with(good(), "messages", json!([1])), 400, &["messages[0]"]);
    for (key, value) in [
        ("n", json!(2)),
        ("tools", json!([{}])),
        ("logprobs", json!(true)),
        ("presence_penalty", json!(0.5)),
        ("response_format", json!({"type": "json_object"})),
        ("top_k", json!(4)),
        ("answer", json!("a cat")),
        ("temperature", json!(2.5)),
        ("temperature", json!("warm")),
        ("top_p", json!(-0.1)),
        ("seed", json!(0.5)),
        ("max_tokens", json!(0)),
        ("stop", json!([""])),
        ("stop", json!({})),
        ("stream", json!("yes")),
    ] {
        refused(with(good(), key, value), 400, &[key]);
    }
    let message = |role: &str, content: Json| json!({"role": role, "content": content});
    for (messages, part) in [
        (json!([message("assistant", json!("a"))]), "follow"),
        (json!([message("tool", json!("a"))]), "tool"),
        (
            json!([message("user", json!([{"type": "input_audio"}]))]),
            "input_audio",
        ),
        (
            json!([message("user", json!("a")), message("system", json!("b"))]),
            "before",
        ),
        (
            json!([
                message("user", json!("a")),
                message("assistant", json!("b"))
            ]),
            "last",
        ),
        (
            json!([{"role": "user", "content": "a", "tool_calls": [1]}]),
            "tool_calls",
        ),
    ] {
        refused(with(good(), "messages", messages), 400, &[part]);
    }
    refused(
        body(json!("very ".repeat(300))),
        400,
        &["room for an answer"],
    );
    let many = vec![first_image(); 40];
    refused(body(json!(many)), 400, &["images"]);
    let marked = json!([first_image(), first_image(), text("<image> what?")]);
    refused(body(marked), 400, &["marks 1"]);
    // Images. None of these is fetched or read.
    let url = |url: &str| body(json!([{"type": "image_url", "image_url": {"url": url}}]));
    refused(
        url("http://127.0.0.1:9/a.png"),
        400,
        &["nothing is fetched"],
    );
    refused(
        url("https://example.com/a.png"),
        400,
        &["nothing is fetched"],
    );
    refused(url("file:///etc/hostname"), 400, &["nothing is fetched"]);
    refused(url("/etc/hostname"), 400, &["not read"]);
    refused(url("data:text/html;base64,AAAA"), 400, &["no image type"]);
    refused(url("data:image/png,AAAA"), 400, &["base64"]);
    refused(url("data:image/png;base64,*"), 400, &["damaged"]);
    refused(
        url("data:image/png;base64,AAAA"),
        400,
        &["messages[0].content[0]"],
    );
    let (_, file) = images().swap_remove(0);
    refused(
        body(json!([image_part("png", &file[..file.len() / 2])])),
        400,
        &["content[0]"],
    );
    let mut enormous = file.clone();
    // The width and height of its header.
    enormous[16..24].copy_from_slice(&[0, 0, 0x7f, 0xff, 0, 0, 0x7f, 0xff]);
    refused(
        body(json!([image_part("png", &enormous)])),
        400,
        &["content[0]"],
    );
    // Too large, told before it is sent, and found out while it comes.
    let head = |length: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: k\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
        )
    };
    let mut stream = connect(address);
    stream
        .write_all(head("content-length: 1000000000").as_bytes())
        .unwrap();
    read(stream).refused(413, &["1 MiB"]);
    let mut stream = connect(address);
    stream
        .write_all(head("transfer-encoding: chunked").as_bytes())
        .unwrap();
    for _ in 0..3 {
        let chunk = format!("80000\r\n{}\r\n", " ".repeat(0x80000));
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    read(stream).refused(413, &["1 MiB"]);
    // Paths, methods and media types.
    ask(address, "GET", "/v1/embeddings", "").refused(404, &["/v1/embeddings"]);
    ask(address, "GET", "/v1/models/other", "").refused(404, &["other"]);
    ask(address, "GET", "/v1/chat/completions", "").refused(405, &["POST"]);
    let mut stream = connect(address);
    let plain = String::from_utf8(request("POST", "/v1/chat/completions", &good().to_string()));
    let plain = plain.unwrap().replace("application/json", "text/plain");
    stream.write_all(plain.as_bytes()).unwrap();
    read(stream).refused(415, &["application/json"]);
    // A head that is none.
    let mut stream = connect(address);
    stream.write_all(b"\x16\x03\x01 hello\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"));
    assert_eq!(complete(address, &good()).answer(), answer);
}

#[test]
fn readers_that_leave_or_dawdle_and_many_connections_hold_nobody_up() {
    let server = Server::start(long_run(), &["--streams", "2", "--queue", "16"]);
    let address = server.address;
    // One after the other leaves: were their rows not freed, who comes next would wait for six long answers.
    let short = with(long_body(), "max_tokens", json!(3));
    for _ in 0..6 {
        leave_mid_stream(address, &long_body());
    }
    assert!(complete(address, &short).events().len() > 1);
    // A reader of a byte at a time, and a sender of half a request.
    let mut dawdling = connect(address);
    dawdling
        .write_all(&request(
            "POST",
            "/v1/chat/completions",
            &long_body().to_string(),
        ))
        .unwrap();
    dawdling.read_exact(&mut [0]).unwrap();
    let whole = request("POST", "/v1/chat/completions", &long_body().to_string());
    let mut half = connect(address);
    half.write_all(&whole[..whole.len() / 2]).unwrap();
    // A thousand connections that say nothing, of which about half are served; those beyond the limit are told so or closed.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files
        .maximum
        .map_or(Some(4096), |most| Some(most.min(4096)));
    setrlimit(Resource::Nofile, files).unwrap();
    let idle: Vec<_> = (0..1000)
        .filter_map(|_| std::net::TcpStream::connect(address).ok())
        .collect();
    assert!(idle.len() > 900, "{}", idle.len());
    dawdling.read_exact(&mut [0]).unwrap();
    drop(idle);
    // Places are free again once the server has seen them close.
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = connect(address);
        let sent = stream.write_all(&request("GET", "/health", ""));
        let mut some = [0; 12];
        if sent.is_ok() && stream.read_exact(&mut some).is_ok() && some == *b"HTTP/1.1 200" {
            break;
        }
        assert!(Instant::now() < until, "the server does not come back");
    }
    // What dawdled is read to its end.
    let mut rest = String::new();
    dawdling.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}

#[test]
fn who_sends_a_byte_at_a_time_or_says_no_more_loses_the_connection() {
    let server = Server::start(short_run(), &["--patience", "1"]);
    let asked = body(json!("what is this?")).to_string();
    let whole = request("POST", "/v1/chat/completions", &asked);
    let body_at = whole.len() - asked.len();
    // A body that comes a byte at a time, and a head.
    let senders = [(body_at, true), (20, false)].map(|(first, is_told)| {
        let mut stream = connect(server.address);
        let reply = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let mut all = String::new();
            let _ = BufReader::new(reply).read_to_string(&mut all);
            all
        });
        stream.write_all(&whole[..first]).unwrap();
        let whole = whole.clone();
        let sending = std::thread::spawn(move || {
            for byte in &whole[first..] {
                if stream.write_all(&[*byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(25));
            }
        });
        (sending, reading, is_told)
    });
    // Whoever has been answered and asks nothing more is let go as well.
    let mut kept = connect(server.address);
    let open = String::from_utf8(whole).unwrap();
    let open = open.replace("connection: close", "connection: keep-alive");
    kept.write_all(open.as_bytes()).unwrap();
    assert!(read(kept).answer().len() > 1);
    for (sending, reading, is_told) in senders {
        sending.join().unwrap();
        let reply = reading.join().unwrap();
        assert!(!reply.contains("200 OK"), "{reply}");
        if is_told {
            assert!(reply.starts_with("HTTP/1.1 408"), "{reply}");
            assert!(reply.contains("did not arrive in time"), "{reply}");
        }
    }
}

#[test]
fn a_full_queue_refuses_and_term_ends_after_what_is_under_way() {
    let mut server = Server::start(long_run(), &["--streams", "1", "--queue", "1"]);
    let address = server.address;
    let bytes = request("POST", "/v1/chat/completions", &long_body().to_string());
    // More at once than one answered, one in the engine's hand and one waiting.
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = connect(address);
            stream.write_all(&bytes).unwrap();
            stream
        })
        .collect();
    let mut replies: Vec<_> = Vec::new();
    let mut heads = Vec::new();
    for stream in streams {
        let mut head = [0; 12];
        stream.peek(&mut head).unwrap();
        heads.push(head);
        replies.push(stream);
    }
    let refused = heads.iter().filter(|head| head.ends_with(b"429")).count();
    assert!((1..8).contains(&refused), "{refused} of 8");
    server.end();
    for (stream, head) in replies.into_iter().zip(heads) {
        let reply = read(stream);
        if head.ends_with(b"429") {
            reply.refused(429, &["wait already"]);
            assert!(reply.head.to_lowercase().contains("retry-after"));
        } else {
            assert!(reply.events().len() > 2);
        }
    }
    assert_eq!(server.wait().code(), Some(0));
    std::net::TcpStream::connect(address).expect_err("nobody listens any more");
}

#[test]
fn memory_stays_as_it_is_over_many_requests() {
    let server = Server::start(short_run(), &[]);
    let asked = body(json!([first_image(), text("what is this?")]));
    let several = |count: usize| {
        for _ in 0..count {
            complete(server.address, &asked).answer();
        }
        server.memory()
    };
    let before = several(40);
    let after = several(120);
    // An image of the tests takes 12 KiB prepared: kept, those of all requests would be 1.5 MiB and their texts as much.
    assert!(after < before + (1 << 20), "{before} bytes, then {after}");
}

#[test]
fn a_text_is_sent_as_far_as_it_stays_and_ends_before_a_stop() {
    let stops = ["END".to_owned(), "ok".to_owned()];
    let mut text = AnswerText::new(stops.to_vec());
    let mut sent = Vec::new();
    // A character comes in two tokens; the beginning of a stop turns out to be none, and later a stop comes in pieces.
    for all in [
        "a",
        "a\u{fffd}",
        "aé",
        "aéE",
        "aéEN",
        "aéENt",
        "aéENt o",
        "aéENt ok!",
    ] {
        let growth = text.grow(all, false);
        sent.push(growth.text);
        assert_eq!(growth.is_stopped, all.ends_with('!'), "{all}");
    }
    assert_eq!(sent, ["a", "", "é", "", "", "ENt", " ", ""]);
    // What was held back is sent when nothing follows.
    let mut text = AnswerText::new(stops.to_vec());
    assert_eq!(text.grow("so E", false).text, "so ");
    assert_eq!(text.grow("so E\u{fffd}", true).text, "E\u{fffd}");
}
